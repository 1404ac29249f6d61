"""Chat completions, by the official client."""

import asyncio
from collections.abc import AsyncGenerator

import openai
import pytest
from agentruntime import errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam
from starlette.requests import ClientDisconnect

from tests.uapi_gateway.http.openai.scripted import World, attempt, done, echo, failed, piece
from tests.waiting import eventually
from uapi_gateway.access.callers import caller_of
from uapi_gateway.conversations.store import Key
from uapi_gateway.http.openai import surface

HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]


async def test_an_agent_is_a_model() -> None:
    async with World().client() as client:
        answer = await client.chat.completions.create(model="helper", messages=HI)
    assert ChatCompletion.model_validate(answer.model_dump()) == answer
    assert answer.choices[0].message.content == "You said Hi"
    assert (answer.choices[0].finish_reason, answer.model, answer.object) == ("stop", "helper", "chat.completion")
    assert answer.id.startswith("chatcmpl-")
    assert answer._request_id == answer.id


def test_the_blocking_client() -> None:
    with World().blocking_client() as client:
        answer = client.chat.completions.create(model="helper", messages=HI)
        assert answer.choices[0].message.content == "You said Hi"
        stream = client.chat.completions.create(model="helper", messages=HI, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "You said Hi"


async def test_a_stream_with_usage() -> None:
    async with World().client() as client:
        stream = await client.chat.completions.create(
            model="helper", messages=HI, stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        chunks = [chunk async for chunk in stream]
    first, *pieces, end, last = chunks
    assert first.choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.content for chunk in pieces] == ["You said ", "Hi"]
    assert end.choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert last.choices == []
    # 2 and 11 bytes.
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens) == (1, 3, 4)
    assert last.usage.model_extra == {"estimated": True}
    assert {chunk.id for chunk in chunks} == {first.id}


async def test_the_clients_own_helper_for_streams() -> None:
    async with (
        World().client() as client,
        client.chat.completions.stream(model="helper", messages=HI) as stream,
    ):
        events = [event.type async for event in stream]
        final = await stream.get_final_completion()
    assert "content.delta" in events
    assert final.choices[0].message.content == "You said Hi"


async def test_what_an_agent_says_of_its_tokens() -> None:
    world = World()
    world.sender.script = lambda _: [attempt(), done("Yes", prompt_tokens="40", completion_tokens="2")]
    async with world.client() as client:
        answer = await client.chat.completions.create(model="helper", messages=HI)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (40, 2, 42)
    assert not answer.usage.model_extra


async def test_what_was_said_before_and_options_reach_the_agent() -> None:
    world = World()
    async with world.client() as client:
        await client.chat.completions.create(
            model="helper",
            messages=[
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello."},
                {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "now?"}]},
            ],
            temperature=0.5, max_completion_tokens=9, stop=["\n"], user="u1", metadata={"topic": "weather"},
        )  # fmt: skip
    assert [(said.role, said.parts[0].text) for said in world.last.earlier] == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello."),
    ]
    assert [part.text for part in world.last.message.parts] == ["And ", "now?"]
    assert dict(world.last.message.metadata) == {
        "topic": "weather",
        "temperature": "0.5",
        "max_tokens": "9",
        "openai.stop": '["\\n"]',
        "openai.user": "u1",
    }


async def test_each_call_is_a_conversation_unless_it_names_one() -> None:
    world = World()
    async with world.client() as client:
        for _ in range(2):
            await client.chat.completions.create(model="helper", messages=HI)
        await client.chat.completions.create(model="helper", messages=HI, metadata={"conversation_id": "first"})
        await client.chat.completions.create(
            model="helper",
            messages=HI,
            extra_headers={"x-uapi-conversation": "first"},
        )
    ids = [request.conversation_id for request in world.sender.requests]
    assert len(set(ids)) == 3
    assert ids[2:] == ["first", "first"]


async def test_a_key_makes_repeating_safe() -> None:
    world = World()
    headers = {"Idempotency-Key": "order 17"}
    async with world.client() as client:
        one = await client.chat.completions.create(model="helper", messages=HI, extra_headers=headers)
        two = await client.chat.completions.create(model="helper", messages=HI, extra_headers=headers)
    assert one.model_dump() == two.model_dump()
    assert len(world.log.events) == 1


async def test_what_is_not_to_be_stored_is_not() -> None:
    world = World()
    async with world.client() as client:
        answer = await client.chat.completions.create(model="helper", messages=HI, store=False)
    assert answer.choices[0].message.content == "You said Hi"
    assert world.log.events == {}


async def test_what_is_not_stored_cannot_be_repeated() -> None:
    async with World().client() as client:
        with pytest.raises(openai.BadRequestError, match="Idempotency-Key") as failure:
            await client.chat.completions.create(
                model="helper", messages=HI, store=False, extra_headers={"Idempotency-Key": "k"}
            )
        assert failure.value.param == "store"


async def test_whoever_hangs_up_is_not_waited_for() -> None:
    world, gate = World(), asyncio.Event()
    world.sender.script = lambda request: [*echo(request)[:2], gate, *echo(request)[2:]]
    body = b'{"model":"helper","store":false,"messages":[{"role":"user","content":"Hi"}]}'
    told: list[dict[str, object]] = [{"type": "http.request", "body": body}]

    async def receive() -> dict[str, object]:
        if told:
            return told.pop()
        await eventually(lambda: bool(world.log.events))
        return {"type": "http.disconnect"}

    async def send(message: dict[str, object]) -> None:
        pass

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"",
             "headers": [(b"x-uapi-principal", b"anonymous")], "asgi": {"spec_version": "2.3"}}  # fmt: skip
    async with asyncio.timeout(20):
        await world.app(scope, receive, send)  # type: ignore[arg-type] # plain dicts
    assert not world.log.events


async def test_an_exchange_ends_with_its_stream_though_nobody_read_of_it() -> None:
    world = World()
    key = Key("anonymous", "helper", "c")
    request = proto.StreamMessageRequest(conversation_id="c", message_id="m")
    world.sender.script = lambda _: [attempt(), done("x")]
    caller = caller_of(world.headers.items(), world.policy)
    sent = await surface.send(world.surface, caller, request, world.registry.require("helper").agent, unstored=True)
    assert key in world.log.events

    async def pieces() -> AsyncGenerator[bytes, None]:
        async for _ in sent.all():
            yield b""

    async def receive() -> dict[str, object]:
        return {"type": "http.disconnect"}

    async def send(message: dict[str, object]) -> None:
        raise OSError

    stream = surface.EventStream(pieces(), "r", sent)
    with pytest.raises(ClientDisconnect):
        await stream({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send)  # type: ignore[arg-type] # plain dicts
    await eventually(lambda: not world.log.events)


async def test_a_lost_worker_is_not_seen_as_long_as_the_answer_is_the_same() -> None:
    world = World()
    said = [piece("One, "), piece("two")]
    again = [piece("One, "), piece("two, "), piece("three")]
    world.sender.script = lambda _: [attempt(), *said, attempt(2), *again, done("One, two, three")]
    async with world.client() as client:
        stream = await client.chat.completions.create(
            model="helper", messages=[{"role": "user", "content": "Count"}], stream=True
        )
        pieces = [chunk.choices[0].delta.content async for chunk in stream if chunk.choices[0].delta.content]
    assert pieces == ["One, ", "two", ", ", "three"]


async def test_another_answer_after_a_lost_worker_ends_the_stream() -> None:
    world = World()
    world.sender.script = lambda _: [attempt(), piece("One"), attempt(2), piece("Uno"), done("Uno")]
    async with world.client() as client:
        stream = await client.chat.completions.create(
            model="helper", messages=[{"role": "user", "content": "Count"}], stream=True
        )
        with pytest.raises(openai.APIError, match="a worker was lost") as failure:
            [chunk async for chunk in stream]
        assert failure.value.code == "REPLY_RESTARTED"
        # Without a stream there was nothing to take back.
        answer = await client.chat.completions.create(model="helper", messages=HI)
    assert answer.choices[0].message.content == "Uno"


async def test_what_an_agent_raises() -> None:
    world = World()
    world.sender.script = lambda _: [attempt(), piece("Well"), failed(3, "NO_SUCH_CITY", "there is no such city")]
    async with world.client() as client:
        with pytest.raises(openai.BadRequestError, match="there is no such city") as failure:
            await client.chat.completions.create(model="helper", messages=HI)
        assert (failure.value.code, failure.value.type) == ("NO_SUCH_CITY", "invalid_request_error")
        # The agent had it: a client must not send it once more by itself.
        assert failure.value.response.headers["x-should-retry"] == "false"
        stream = await client.chat.completions.create(model="helper", messages=HI, stream=True)
        with pytest.raises(openai.APIError, match="there is no such city"):
            [chunk async for chunk in stream]


@pytest.mark.parametrize(
    ("error", "expected", "status"),
    [
        (errors.ConversationBusy("one runs"), openai.ConflictError, 409),
        (errors.RateLimited("too many"), openai.RateLimitError, 429),
        (errors.AgentNotReady("no worker"), openai.InternalServerError, 503),
        (errors.MessageTooLarge("too long"), openai.APIStatusError, 413),
        (errors.NoConversations("it has none"), openai.BadRequestError, 400),
        (errors.PermissionDenied("no"), openai.PermissionDeniedError, 403),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal(
    error: errors.AgentError, expected: type[openai.APIStatusError], status: int, stream: bool
) -> None:
    world = World()
    world.sender.script = lambda _: [error]
    async with world.client() as client:
        with pytest.raises(expected) as failure:
            await client.chat.completions.create(model="helper", messages=HI, stream=stream)
    assert failure.value.status_code == status
    assert failure.value.code == error.reason
    assert error.message in str(failure.value)


async def test_a_stream_whose_reader_goes_is_deleted_all_the_same() -> None:
    world = World()
    gate = asyncio.Event()
    world.sender.script = lambda request: [*echo(request)[:2], gate, *echo(request)[2:]]
    sent: list[bytes] = []

    async def send(message: dict[str, object]) -> None:
        sent.append(bytes(message.get("body") or b""))  # type: ignore[call-overload] # it is bytes
        if len(sent) == 3:
            gone.set()

    gone = asyncio.Event()
    body = b'{"model":"helper","store":false,"stream":true,"messages":[{"role":"user","content":"Hi"}]}'

    async def received() -> dict[str, object]:
        if not begun:
            begun.append(True)
            return {"type": "http.request", "body": body}
        await gone.wait()
        return {"type": "http.disconnect"}

    begun: list[bool] = []
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"",
             "headers": [(b"x-uapi-principal", b"anonymous")], "asgi": {"spec_version": "2.3"}}  # fmt: skip
    await world.app(scope, received, send)  # type: ignore[arg-type] # plain dicts
    await eventually(lambda: not world.log.events)


async def test_pictures_and_sound() -> None:
    world = World()
    async with world.client() as client:
        await client.chat.completions.create(
            model="helper",
            messages=[{
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAEC"}},
                    {"type": "input_audio", "input_audio": {"data": "AAEC", "format": "wav"}},
                    {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAEC", "filename": "a.pdf"}},
                ],
            }],
        )  # fmt: skip
    assert list(world.last.message.parts) == [
        proto.Part(url="https://example.com/cat.png", media_type="image/*"),
        proto.Part(blob=b"\0\1\2", media_type="image/png"),
        proto.Part(blob=b"\0\1\2", media_type="audio/wav"),
        proto.Part(blob=b"\0\1\2", media_type="application/pdf", name="a.pdf"),
    ]


async def test_the_conversation_is_the_callers() -> None:
    world = World()
    async with world.client(**{"x-uapi-principal": "local"}) as client:
        await client.chat.completions.create(model="helper", messages=HI)
    assert list(world.log.events) == [Key("local", "helper", world.last.conversation_id)]
