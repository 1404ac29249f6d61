"""Responses, by the official client."""

import asyncio
from typing import Any

import openai
import pytest
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from openai import AsyncOpenAI
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.uapi_gateway.http.openai.scripted import World, attempt, done, echo, failed, piece
from tests.waiting import eventually
from uapi_gateway.conversations.store import Key
from uapi_gateway.http.openai import surface

_EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)
WHOLE = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]


def _conversation(response: Response) -> str:
    assert response.conversation is not None
    return response.conversation.id


async def test_a_response() -> None:
    world = World()
    async with world.client() as client:
        made = await client.responses.create(
            model="helper", input="Hi", instructions="Be brief.", metadata={"a": "b"}, temperature=1, user="u1"
        )
        again = await client.responses.retrieve(made.id)
    assert Response.model_validate(made.model_dump()) == made
    assert again.model_dump() == made.model_dump()
    assert made.output_text == "You said Hi"
    assert (made.status, made.model, made.metadata, made.user) == ("completed", "helper", {"a": "b"}, "u1")
    assert (made.temperature, made.instructions) == (1.0, "Be brief.")
    assert made.conversation is not None
    assert made.conversation.id == world.last.conversation_id
    assert made.usage is not None
    assert made.usage.output_tokens == 3
    assert [(said.role, said.parts[0].text) for said in world.last.earlier] == [("system", "Be brief.")]


def test_the_blocking_client() -> None:
    with World().blocking_client() as client:
        assert client.responses.create(model="helper", input="Hi").output_text == "You said Hi"
        with client.responses.stream(model="helper", input="Hi") as stream:
            assert [event.type for event in stream] == WHOLE
            assert stream.get_final_response().output_text == "You said Hi"


async def _streamed(client: AsyncOpenAI, text: str = "Hi") -> list[ResponseStreamEvent]:
    stream = await client.responses.create(model="helper", input=text, stream=True)
    return [event async for event in stream]


async def test_the_events_of_a_stream() -> None:
    async with World().client() as client:
        events = await _streamed(client)
    assert [event.type for event in events] == WHOLE
    assert [event.sequence_number for event in events] == list(range(len(WHOLE)))
    for event in events:
        assert _EVENT.validate_python(event.model_dump()) == event
    completed = events[-1]
    assert completed.type == "response.completed"
    assert completed.response.output_text == "You said Hi"


async def test_a_stream_goes_on_anywhere() -> None:
    async with World().client() as client:
        events = await _streamed(client)
        assert events[0].type == "response.created"
        for after in range(len(events)):
            stream = await client.responses.retrieve(events[0].response.id, stream=True, starting_after=after)
            rest = [event async for event in stream]
            assert [event.model_dump() for event in rest] == [event.model_dump() for event in events[after + 1 :]]


async def test_in_the_background() -> None:
    world, gate = World(), asyncio.Event()
    world.sender.script = lambda request: [*echo(request)[:2], gate, *echo(request)[2:]]
    async with world.client() as client:
        made = await client.responses.create(model="helper", input="Hi", background=True)
        assert made.status in ("queued", "in_progress")
        assert made.background is True
        await eventually(lambda: len(next(iter(world.log.events.values()))) == 3)
        assert (await client.responses.retrieve(made.id)).status == "in_progress"
        gate.set()
        stream = await client.responses.retrieve(made.id, stream=True)
        assert [event.type async for event in stream] == WHOLE
        assert (await client.responses.retrieve(made.id)).output_text == "You said Hi"
        with pytest.raises(openai.BadRequestError, match="'store'"):
            await client.responses.create(model="helper", input="Hi", background=True, store=False)


async def test_a_conversation_goes_on_from_a_response_or_by_its_name() -> None:
    world = World()
    async with world.client() as client:
        one = await client.responses.create(model="helper", input="One")
        two = await client.responses.create(model="helper", input="Two", previous_response_id=one.id)
        three = await client.responses.create(model="helper", input="Three", conversation=_conversation(two))
        assert {request.conversation_id for request in world.sender.requests} == {_conversation(one)}
        assert two.previous_response_id == one.id
        assert (await client.responses.retrieve(two.id)).previous_response_id == one.id
        two_more: Any = [{"role": "user", "content": "Three"}, {"role": "user", "content": "Four"}]
        with pytest.raises(openai.BadRequestError, match="knows what was said in it"):
            await client.responses.create(model="helper", conversation={"id": _conversation(three)}, input=two_more)
        with pytest.raises(openai.BadRequestError, match="name that as the model"):
            await client.responses.create(model="other", input="Two", previous_response_id=one.id)
        with pytest.raises(openai.BadRequestError, match="not both"):
            await client.responses.create(model="helper", input="x", conversation="c", previous_response_id=one.id)


async def test_a_conversation_branches_from_an_earlier_response() -> None:
    world = World()
    async with world.client() as client:
        one = await client.responses.create(model="helper", input="One", instructions="Be brief.")
        await client.responses.create(model="helper", input="Two", previous_response_id=one.id)
        other = await client.responses.create(model="helper", input="Other", previous_response_id=one.id)
    assert other.conversation != one.conversation
    said = [(said.role, said.parts[0].text) for said in world.last.earlier]
    assert said == [("system", "Be brief."), ("user", "One"), ("assistant", "You said One")]


async def test_what_was_said_before_is_not_more_than_a_message_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surface, "LONGEST_BYTES", 1000)
    world = World()
    async with world.client() as client:
        one = await client.responses.create(model="helper", input="One")
        two = await client.responses.create(model="helper", input="2" * 600, previous_response_id=one.id)
        await client.responses.create(model="helper", input="Three", previous_response_id=two.id)
        await client.responses.create(model="helper", input="Other", previous_response_id=one.id)
        with pytest.raises(openai.APIStatusError, match="larger than") as failure:
            await client.responses.create(model="helper", input="Other", previous_response_id=two.id)
    assert (failure.value.status_code, failure.value.code) == (413, "MESSAGE_TOO_LARGE")


async def test_the_input() -> None:
    given: Any = [
        {"role": "user", "content": "One"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Two"}]},
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "Three"},
                {"type": "input_image", "detail": "auto", "image_url": "data:image/png;base64,AAEC"},
            ],
        },
    ]
    async with World().client() as client:
        made = await client.responses.create(model="helper", instructions="Be brief.", input=given)
        page = await client.responses.input_items.list(made.id, limit=2)
        items: list[Any] = [item async for item in page]
        asc = await client.responses.input_items.list(made.id, order="asc", limit=1)
    assert [(item.role, len(item.content)) for item in items] == [("user", 2), ("assistant", 1), ("user", 1)]
    assert items[0].content[1].image_url == "data:image/png;base64,AAEC"
    assert asc.data[0].id == items[-1].id
    assert asc.has_more


async def test_cancel() -> None:
    world = World()

    async def cancelled(key: Key, message_id: str = "") -> "proto.MessageStatus.ValueType":
        event = failed(1, "CANCELLED", "it was cancelled")
        event.message_id = message_id
        await world.log.append(key, event)
        return proto.MESSAGE_STATUS_RUNNING

    world.log.cancel = cancelled  # type: ignore[method-assign] # as the worker does
    never = asyncio.Event()
    world.sender.script = lambda _: [attempt(), piece("Well"), never]
    async with world.client() as client:
        made = await client.responses.create(model="helper", input="Hi", background=True)
        await eventually(lambda: len(next(iter(world.log.events.values()))) == 3)
        ended = await client.responses.cancel(made.id)
        assert ended.status == "cancelled"
        assert ended.output_text == "Well"
        stream = await client.responses.retrieve(made.id, stream=True)
        events = [event async for event in stream]
        assert events[-1].type == "response.incomplete"
        assert events[-1].response.status == "cancelled"
    for task in list(world.sender.running):
        task.cancel()


async def test_delete() -> None:
    world = World()
    async with world.client() as client:
        alone = await client.responses.create(model="helper", input="Hi")
        await client.responses.delete(alone.id)
        assert world.log.events == {}
        with pytest.raises(openai.NotFoundError) as failure:
            await client.responses.delete(alone.id)
        assert failure.value.code == "RESPONSE_NOT_FOUND"
        one = await client.responses.create(model="helper", input="One")
        await client.responses.create(model="helper", input="Two", previous_response_id=one.id)
        with pytest.raises(openai.BadRequestError, match="agent conversations delete helper"):
            await client.responses.delete(one.id)


async def test_what_is_not_to_be_stored_is_not() -> None:
    world = World()
    async with world.client() as client:
        made = await client.responses.create(model="helper", input="Hi", store=False)
        assert made.output_text == "You said Hi"
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(made.id)
        # Of a conversation that is there already it is a part.
        kept = await client.responses.create(model="helper", input="Hi", conversation="c", store=False)
        assert (await client.responses.retrieve(kept.id)).output_text == "You said Hi"


async def test_another_attempt_is_another_item() -> None:
    world = World()
    world.sender.script = lambda _: [attempt(), piece("One"), attempt(), piece("Uno"), done("Uno")]
    async with world.client() as client:
        async with client.responses.stream(model="helper", input="Count") as stream:
            events: list[Any] = [event async for event in stream]
            final = await stream.get_final_response()
        done_items = [event for event in events if event.type == "response.output_item.done"]
        assert [(event.output_index, event.item.status) for event in done_items] == [
            (0, "incomplete"),
            (1, "completed"),
        ]
        assert final.output_text == "Uno"
        assert (await client.responses.retrieve(final.id)).output_text == "Uno"


async def test_a_failure() -> None:
    world = World()
    world.sender.script = lambda _: [
        attempt(),
        piece("Well"),
        failed(14, "MESSAGE_SET_ASIDE", "three ended"),
    ]
    async with world.client() as client:
        with pytest.raises(openai.InternalServerError) as failure:
            await client.responses.create(model="helper", input="Hi")
        assert (failure.value.status_code, failure.value.code) == (503, "MESSAGE_SET_ASIDE")
        assert failure.value.response.headers["x-should-retry"] == "false"
        events = await _streamed(client)
        assert events[-1].type == "response.failed"
        assert events[-1].response.error is not None
        assert events[-1].response.error.message == "three ended"
        again = await client.responses.retrieve(events[-1].response.id)
        assert (again.status, again.output_text) == ("failed", "Well")


async def test_nobody_reads_anothers() -> None:
    world = World()
    async with world.client() as client:
        made = await client.responses.create(model="helper", input="Hi")
    async with world.client(**{"x-uapi-principal": "local"}) as client:
        calls = [
            client.responses.retrieve(made.id),
            client.responses.retrieve(made.id, stream=True),
            client.responses.cancel(made.id),
            client.responses.delete(made.id),
            client.responses.create(model="helper", input="Hi", previous_response_id=made.id),
        ]
        for call in calls:
            with pytest.raises(openai.NotFoundError) as failure:
                await call
            assert failure.value.code == "RESPONSE_NOT_FOUND"


@pytest.mark.parametrize("id_", ["resp_", "resp_AAAA", "resp_ä", "msg_1", "resp_" + "A" * 900, "x"])
async def test_an_id_that_is_none(id_: str) -> None:
    async with World().client() as client:
        with pytest.raises(openai.NotFoundError, match="no response"):
            await client.responses.retrieve(id_)
