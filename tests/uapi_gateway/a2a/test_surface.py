"""A2A by its SDK's own client, in each way that it can be called."""

import codecs
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from a2a.client.errors import A2AClientError
from a2a.types import a2a_pb2 as a2a
from a2a.utils.errors import (
    InternalError,
    InvalidParamsError,
    PushNotificationNotSupportedError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)
from agentruntime import errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto

from tests.uapi_gateway.a2a.speaking import BINDINGS, Speaking, said, speaking
from tests.waiting import eventually
from uapi_gateway.access.policy import Policy
from uapi_gateway.conversations.store import Key
from uapi_gateway.http.bounds import MOST_VALUES

REPLY = "You said it"
VERSION = {"A2A-Version": "1.0"}
each_way = pytest.mark.parametrize("binding", BINDINGS)


@pytest_asyncio.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Speaking]:
    async with speaking(tmp_path) as made:
        yield made


async def task_of(gateway: Speaking, binding: str, request: a2a.SendMessageRequest | None = None) -> a2a.Task:
    client = await gateway.client(binding, streaming=False)
    [response] = [response async for response in client.send_message(request or said())]
    assert response.HasField("task")
    return response.task


def reply_of(task: a2a.Task) -> str:
    return "".join(part.text for artifact in task.artifacts for part in artifact.parts)


@each_way
async def test_a_message_is_a_task_with_the_reply(gateway: Speaking, binding: str) -> None:
    task = await task_of(gateway, binding)
    assert task.id == "c.m"
    assert task.context_id == "c"
    assert task.status.state == a2a.TASK_STATE_COMPLETED
    assert reply_of(task) == REPLY
    assert [message.parts[0].text for message in task.history] == ["Hi"]
    sent = gateway.worker.calls[0]["request"]
    assert (sent.conversation_id, sent.message_id, sent.message.role) == ("c", "m", "user")
    client = await gateway.client(binding)
    assert await client.get_task(a2a.GetTaskRequest(id=task.id)) == task
    short = await client.get_task(a2a.GetTaskRequest(id=task.id, history_length=0))
    assert not short.history


@each_way
async def test_a_context_is_made_where_none_is_named(gateway: Speaking, binding: str) -> None:
    one, other = [await task_of(gateway, binding, said(context_id="")) for _ in range(2)]
    assert one.context_id
    assert one.context_id != other.context_id
    client = await gateway.client(binding)
    assert (await client.get_task(a2a.GetTaskRequest(id=one.id))).context_id == one.context_id


@each_way
async def test_a_stream_tells_the_task_and_each_piece(gateway: Speaking, binding: str) -> None:
    client = await gateway.client(binding)
    responses = [response async for response in client.send_message(said())]
    assert [response.WhichOneof("payload") for response in responses] == [
        "task", "status_update", *["artifact_update"] * 4, "status_update",
    ]  # fmt: skip
    assert responses[0].task.status.state == a2a.TASK_STATE_SUBMITTED
    assert responses[1].status_update.status.state == a2a.TASK_STATE_WORKING
    pieces = [response.artifact_update for response in responses[2:-1]]
    assert [piece.append for piece in pieces] == [False, True, True, True]
    assert [piece.last_chunk for piece in pieces] == [False, False, False, True]
    assert "".join(piece.artifact.parts[0].text for piece in pieces) == REPLY
    assert responses[-1].status_update.status.state == a2a.TASK_STATE_COMPLETED


@each_way
async def test_who_hung_up_subscribes_and_misses_nothing(gateway: Speaking, binding: str) -> None:
    gateway.worker.gate.clear()
    client = await gateway.client(binding)
    stream: Any = client.send_message(said())
    async with aclosing(stream) as responses:
        async for response in responses:
            if response.HasField("artifact_update"):
                break
    # As after a restart, or at another gateway: nothing is remembered.
    gateway.entrance._surface = None
    later: Any = (await gateway.client(binding)).subscribe(a2a.SubscribeToTaskRequest(id="c.m"))
    async with aclosing(later) as responses:
        first = await anext(responses)
        assert first.task.status.state == a2a.TASK_STATE_WORKING
        assert reply_of(first.task) == "You "
        gateway.worker.gate.set()
        rest = [response async for response in responses]
    texts = [part.text for r in rest for part in r.artifact_update.artifact.parts]
    assert reply_of(first.task) + "".join(texts) == REPLY
    assert all(r.artifact_update.append for r in rest if r.HasField("artifact_update"))
    assert rest[-1].status_update.status.state == a2a.TASK_STATE_COMPLETED
    with pytest.raises(UnsupportedOperationError, match="ended"):
        await anext(client.subscribe(a2a.SubscribeToTaskRequest(id="c.m")))


@each_way
async def test_what_was_begun_at_another_door_is_a_task_here(gateway: Speaking, binding: str) -> None:
    key = Key("local", "helper", "a b/")
    message = proto.ChatMessage(parts=[proto.Part(text="Hello"), proto.Part(blob=b"\0", media_type="image/png")])
    failure = proto.Failure(code=14, reason="MESSAGE_AMBIGUOUS", message="the worker ended")
    await gateway.log.append(key, proto.Event(message_id="x.y", message=message))
    client = await gateway.client(binding)
    [found] = (await client.list_tasks(a2a.ListTasksRequest())).tasks
    assert found.status.state == a2a.TASK_STATE_SUBMITTED
    await gateway.log.append(key, proto.Event(message_id="x.y", failure=failure))
    task = await client.get_task(a2a.GetTaskRequest(id=found.id))
    assert task.context_id == key.conversation_id
    assert task.history[0].message_id == "x.y"
    assert task.history[0].parts[1].raw == b"\0"
    assert task.status.state == a2a.TASK_STATE_FAILED
    assert task.status.message.parts[0].text == "the worker ended"
    assert dict(task.status.message.metadata) == {"code": "UNAVAILABLE", "reason": "MESSAGE_AMBIGUOUS"}


@each_way
async def test_a_task_is_canceled(gateway: Speaking, binding: str) -> None:
    gateway.worker.gate.clear()
    request = said()
    request.configuration.return_immediately = True
    task = await task_of(gateway, binding, request)
    assert task.status.state == a2a.TASK_STATE_SUBMITTED
    client = await gateway.client(binding)

    async def obeyed(key: Key, message_id: str) -> int:
        failure = proto.Failure(code=1, reason="CANCELLED", message="canceled by its caller")
        await gateway.log.append(key, proto.Event(message_id=message_id, failure=failure))
        return proto.MESSAGE_STATUS_CANCELLED

    gateway.log.cancel = obeyed  # type: ignore[method-assign, assignment] # a worker would do it
    canceled = await client.cancel_task(a2a.CancelTaskRequest(id=task.id))
    assert canceled.status.state == a2a.TASK_STATE_CANCELED
    with pytest.raises(TaskNotCancelableError, match="ended"):
        await client.cancel_task(a2a.CancelTaskRequest(id=task.id))
    gateway.worker.gate.set()


@each_way
async def test_tasks_are_listed_by_pages(gateway: Speaking, binding: str) -> None:
    for number in range(3):
        await task_of(gateway, binding, said(message_id=f"m{number}"))
    await task_of(gateway, binding, said(context_id="d"))
    client = await gateway.client(binding)
    found = await client.list_tasks(a2a.ListTasksRequest(context_id="c"))
    assert [task.id for task in found.tasks] == ["c.m2", "c.m1", "c.m0"]
    assert found.total_size == 3
    assert not found.next_page_token
    assert not any(task.artifacts for task in found.tasks)
    first = await client.list_tasks(a2a.ListTasksRequest(context_id="c", page_size=2, include_artifacts=True))
    assert reply_of(first.tasks[0]) == REPLY
    assert first.total_size == 3
    rest = await client.list_tasks(
        a2a.ListTasksRequest(context_id="c", page_size=2, page_token=first.next_page_token)
    )
    assert [task.id for task in (*first.tasks, *rest.tasks)] == ["c.m2", "c.m1", "c.m0"]
    assert rest.total_size == 3
    assert not (await client.list_tasks(a2a.ListTasksRequest(context_id="none"))).tasks
    failed = await client.list_tasks(a2a.ListTasksRequest(context_id="c", status=a2a.TASK_STATE_FAILED))
    assert not failed.tasks
    for wrong in (a2a.ListTasksRequest(page_token="x"), a2a.ListTasksRequest(page_size=101)):
        with pytest.raises(InvalidParamsError):
            await client.list_tasks(wrong)


@each_way
async def test_errors(gateway: Speaking, binding: str) -> None:
    client = await gateway.client(binding, streaming=False)
    for unknown in ("c.m", "nothing", "a~7.b"):
        with pytest.raises(TaskNotFoundError):
            await client.get_task(a2a.GetTaskRequest(id=unknown))
        with pytest.raises(TaskNotFoundError):
            await client.cancel_task(a2a.CancelTaskRequest(id=unknown))
    for wrong in (said(message_id=""), said(message_id="x" * 201), said(message_id="ü")):
        with pytest.raises(InvalidParamsError):
            await anext(client.send_message(wrong))
    task = await task_of(gateway, binding)
    with pytest.raises(UnsupportedOperationError, match="contextId"):
        await anext(client.send_message(said(message_id="n", task_id=task.id)))
    with pytest.raises(InvalidParamsError, match="context"):
        await anext(client.send_message(said(message_id="n", task_id=task.id, context_id="d")))
    with pytest.raises(PushNotificationNotSupportedError):
        await client.create_task_push_notification_config(
            a2a.TaskPushNotificationConfig(task_id=task.id, url="http://localhost/")
        )


@each_way
async def test_errors_that_a2a_has_no_name_for(gateway: Speaking, binding: str) -> None:
    gateway.worker.refuses = errors.Aborted("a message runs", reason="CONVERSATION_BUSY")
    for streaming in (False, True):
        client = await gateway.client(binding, streaming=streaming)
        # The client reads the message of what it knows; over REST it has the status alone.
        with pytest.raises((A2AClientError, InternalError), match=r"a message runs|HTTP Error 409"):
            await anext(client.send_message(said()))


@each_way
async def test_one_callers_task_is_not_anothers(gateway: Speaking, binding: str) -> None:
    task = await task_of(gateway, binding)
    client = await gateway.client(binding, principal="anonymous")
    with pytest.raises(TaskNotFoundError):
        await client.get_task(a2a.GetTaskRequest(id=task.id))
    assert not (await client.list_tasks(a2a.ListTasksRequest())).tasks


async def test_an_agent_that_only_generates_answers_with_a_message(gateway: Speaking) -> None:
    for binding in BINDINGS:
        client = await gateway.client(binding, "plain", streaming=False)
        [response] = [response async for response in client.send_message(said("Hello"))]
        assert [part.text for part in response.message.parts] == ["Hello"]
        assert response.message.role == a2a.ROLE_AGENT
        client = await gateway.client(binding, "plain")
        responses = [response async for response in client.send_message(said("Hello"))]
        assert responses[-1].status_update.status.state == a2a.TASK_STATE_COMPLETED


async def test_cards(gateway: Speaking) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as http:
        card = (await http.get("/agents/helper/.well-known/agent-card.json")).json()
        assert card["name"] == "helper"
        assert card["version"] == "1.2.0"
        assert card["capabilities"]["streaming"] is True
        base = f"{gateway.url}/agents/helper/a2a"
        assert [(each["protocolBinding"], each["url"]) for each in card["supportedInterfaces"]] == [
            ("JSONRPC", base),
            ("HTTP+JSON", base),
            ("GRPC", gateway.grpc),
        ]
        assert card["supportedInterfaces"][2]["tenant"] == "helper"
        assert set(card["securitySchemes"]) == {"bearer", "apiKey"}
        assert "securityRequirements" not in card
        kept = (await http.get("/agents/kept/.well-known/agent-card.json")).json()
        assert len(kept["securityRequirements"]) == 2
        assert (await http.get("/agents/none/.well-known/agent-card.json")).status_code == 404
        assert (await http.get("/agents/other/.well-known/agent-card.json")).status_code == 400
        several = await http.get("/.well-known/agent-card.json")
        assert several.status_code == 404
        assert len(several.json()["cards"]) == 3
        anonymous = {"x-uapi-principal": "anonymous"}
        refused = await http.get("/agents/kept/.well-known/agent-card.json", headers=anonymous)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        for name in ("kept", "plain"):
            gateway.registry.remove_pool_agent(name)
        only = (await http.get("/.well-known/agent-card.json")).json()
        assert only == card


async def test_who_may_not_is_refused_before_anything(tmp_path: Path) -> None:
    async with speaking(tmp_path, Policy(anonymous=False)) as gateway, httpx.AsyncClient() as http:
        base, headers = f"{gateway.url}/agents/helper/a2a", {"x-uapi-principal": "anonymous", **VERSION}
        for path in ("", "/message:send", "/message:stream"):
            response = await http.post(base + path, json={}, headers=headers)
            assert response.status_code == 401
            assert response.json()["error"]["details"][0]["reason"] == "CREDENTIAL_MISSING"
        assert (await http.get(f"{base}/tasks/c.m", headers=headers)).status_code == 401
        named = {**headers, "x-uapi-principal": "cert:x"}
        assert (await http.get(f"{gateway.url}/agents/none/a2a/tasks", headers=named)).status_code == 404
        assert not gateway.worker.calls


async def test_rest_has_the_status_of_our_errors(gateway: Speaking) -> None:
    gateway.worker.refuses = errors.QueueFull("too much waits")
    body = {"message": {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": "Hi"}]}}
    async with httpx.AsyncClient(base_url=f"{gateway.url}/agents/helper/a2a", headers=VERSION) as http:
        for path in ("/message:send", "/message:stream"):
            response = await http.post(path, json=body)
            assert response.status_code == 429
            error = response.json()["error"]
            assert (error["status"], error["details"][0]["reason"]) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
        asked = {"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": body}
        base = str(http.base_url).rstrip("/")
        error = (await http.post(base, json=asked)).json()["error"]
        assert error["message"] == "too much waits"
        assert error["data"][0]["metadata"]["reason"] == "QUEUE_FULL"
        # What is no version of ours is refused, as the specification says of none.
        error = (await http.post(base, json=asked, headers={"A2A-Version": ""})).json()["error"]
        assert error["code"] == -32009


async def test_json_of_too_many_values_is_refused_before_it_is_read(gateway: Speaking) -> None:
    body = {"message": {"messageId": "m", "role": "ROLE_USER", "parts": [{"data": [[]] * (MOST_VALUES + 1)}]}}
    async with httpx.AsyncClient(base_url=f"{gateway.url}/agents/helper/a2a", headers=VERSION) as http:
        response = await http.post("/message:send", json=body)
        assert (response.status_code, response.json()["error"]["details"][0]["reason"]) == (413, "MESSAGE_TOO_LARGE")
        # As ASCII, for it has half a character.
        half = b'{"message": {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": "\\ud800"}]}}'
        assert (await http.post("/message:send", content=half)).status_code == 400
        # In encodings that the SDK would tell from its first bytes.
        for disguised in (codecs.BOM_UTF8 + half, half.decode().encode("utf-16-le")):
            assert (await http.post("/message:send", content=disguised)).status_code == 400
        assert not gateway.worker.calls


async def test_bugs_are_hidden(gateway: Speaking, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ValueError("inner text")

    monkeypatch.setattr(gateway.log, "find", broken)
    async with httpx.AsyncClient(base_url=f"{gateway.url}/agents/helper/a2a", headers=VERSION) as http:
        page = (await http.get("/tasks/c.m")).text
        assert "request id" in page
        assert "inner text" not in page


async def test_a_client_that_hangs_up_leaves_nothing_behind(gateway: Speaking) -> None:
    gateway.worker.gate.clear()
    client = await gateway.client("JSONRPC")
    stream: Any = client.send_message(said())
    async with aclosing(stream) as responses:
        await anext(responses)
    await gateway.clients.aclose()
    await eventually(lambda: gateway.worker.ended == 1)
    gateway.worker.gate.set()


async def test_a_client_that_hangs_up_ends_what_is_generated_for_nobody_else(gateway: Speaking) -> None:
    gateway.worker.gate.clear()
    body = {"message": {"messageId": "m", "role": "ROLE_USER", "parts": [{"text": "Hi"}]}}
    asked = {"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": body}
    async with httpx.AsyncClient(base_url=f"{gateway.url}/agents/plain", headers=VERSION, timeout=0.5) as http:
        for path, said in (("/a2a", asked), ("/a2a/message:send", body)):
            gateway.worker.ended = 0
            with pytest.raises(httpx.ReadTimeout):
                await http.post(path, json=said)
            await eventually(lambda: gateway.worker.ended == 1)
    gateway.worker.gate.set()
