"""The HTTP API of agents and conversations, on a real port, before a worker and a log in memory."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio
from agentruntime import errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from structlog.testing import capture_logs

from tests.uapi_gateway.conversations.conversing import PIECES, PLACES, Standing, standing
from tests.uapi_gateway.http.serving import served
from tests.waiting import eventually
from uapi_gateway.conversations.store import Key
from uapi_gateway.http import event_stream, runs
from uapi_gateway.http.core import Core

pytestmark = pytest.mark.asyncio(loop_scope="module")
ANONYMOUS = {"x-uapi-principal": "anonymous"}
KINDS = ["message", "attempt", "chunk", "chunk", "chunk", "completion"]
TOO_LARGE = (413, "MESSAGE_TOO_LARGE")
HI: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}


@dataclass
class Api:
    """The API, and what is behind it."""

    client: httpx.AsyncClient
    behind: Standing

    async def events(self, method: str, path: str, **more: Any) -> list[dict[str, Any]]:
        """Of a whole stream."""
        async with self.client.stream(method, path, **more) as response:
            assert response.headers["content-type"].startswith("text/event-stream"), await response.aread()
            return parsed((await response.aread()).decode())


def parsed(text: str) -> list[dict[str, Any]]:
    """The events of a stream, with their ids and kinds."""
    found = []
    for block in (block.strip() for block in text.split("\n\n")):
        if block in ("", ":"):
            continue
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append({"id": fields.get("id"), "event": fields["event"], **json.loads(fields["data"])})
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def serving(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    async with standing(tmp_path_factory.mktemp("w")) as behind:
        core = Core(behind.sender, behind.log, behind.registry, lambda: behind.policy)
        async with served(runs.application(core)) as address, httpx.AsyncClient(base_url=address) as client:
            yield Api(client, behind)


@pytest_asyncio.fixture(loop_scope="module")
async def api(serving: Api) -> Api:
    """The same, with nothing said yet."""
    await serving.behind.worker.settle()
    serving.behind.log.events.clear()
    serving.behind.log.cancelled.clear()
    return serving


async def test_agents(api: Api) -> None:
    listed = (await api.client.get("/agents")).json()["agents"]
    assert [(each["name"], each["conversations"], each["status"]) for each in listed] == [
        ("helper", True, "unavailable"),
        ("other", False, "unavailable"),
        ("plain", False, "unavailable"),
    ]
    # Who may not call one does not see it.
    listed = (await api.client.get("/agents", headers=ANONYMOUS)).json()["agents"]
    assert [each["name"] for each in listed] == ["other", "plain"]


async def test_run_as_the_seed_has_it(api: Api) -> None:
    body = {"agent_name": "helper", "conversation_id": "test-conversation", **HI}
    response = await api.client.post("/agents/helper/run", json=body)
    assert response.status_code == 200
    answer = response.json()
    (message,) = answer.pop("messages")
    assert answer == {"status": "completed", "conversation_id": "test-conversation"}
    assert (message["role"], message["content"]) == ("assistant", "".join(PIECES))
    assert len(message["message_id"]) == 36
    assert (await api.client.post("/agents/helper/run", json=HI)).json()["conversation_id"] == "http-helper"
    assert set(api.behind.log.events) == {Key("local", "helper", c) for c in ("test-conversation", "http-helper")}


async def test_what_was_said_before_goes_with_the_message(api: Api) -> None:
    said = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"text": "See"}, {"data": {"a": [1, None]}}, {"blob": "AAE=", "name": "x"}]},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Hi", "metadata": {"k": "v"}},
    ]
    response = await api.client.post("/agents/helper/run", json={"messages": said, "when_busy": "reject"})
    assert response.status_code == 200
    (call,) = api.behind.worker.calls
    request = call["request"]
    assert request.when_busy == proto.WHEN_BUSY_REJECT
    assert (request.message.parts[0].text, dict(request.message.metadata)) == ("Hi", {"k": "v"})
    assert [each.role for each in request.earlier] == ["system", "user", "assistant"]
    parts = request.earlier[1].parts
    assert (parts[0].text, parts[1].data.struct_value["a"][0], parts[2].blob) == ("See", 1, b"\0\1")


@pytest.mark.parametrize("how", ["body", "header"])
async def test_a_stream_has_all_events_numbered(api: Api, how: str) -> None:
    more = {
        "body": {"json": {**HI, "stream": True}},
        "header": {"json": HI, "headers": {"accept": "text/event-stream"}},
    }
    events = await api.events("POST", "/agents/helper/run", **more[how])
    assert [event["event"] for event in events] == KINDS
    assert [event["id"] for event in events] == ["1", "2", "3", "4", "5", "6"]
    assert [event["sequence"] for event in events] == [1, 2, 3, 4, 5, 6]
    assert {event["conversation_id"] for event in events} == {"http-helper"}
    assert "".join(event["chunk"]["text"] for event in events[2:5]) == "".join(PIECES)
    assert events[5]["completion"]["parts"] == [{"text": "".join(PIECES)}]


@pytest.mark.parametrize("place", PLACES)
async def test_a_worker_that_breaks_is_not_noticed(api: Api, place: str) -> None:
    api.behind.worker.breaks = [place]
    events = await api.events("POST", "/agents/helper/run", json={**HI, "stream": True})
    assert [event["id"] for event in events] == ["1", "2", "3", "4", "5", "6"]


@pytest.mark.parametrize("after", ["1", "4", "6"])
async def test_the_same_request_goes_on_after_the_last_event(api: Api, after: str) -> None:
    body = {**HI, "stream": True, "message_id": "m"}
    await api.events("POST", "/agents/helper/run", json=body)
    events = await api.events("POST", "/agents/helper/run", json=body, headers={"last-event-id": after})
    assert [event["id"] for event in events] == [str(n) for n in range(int(after) + 1, 7)]
    path = "/agents/helper/conversations/http-helper/events?message_id=m"
    told = {"last-event-id": after, "accept": "text/event-stream"}
    assert await api.events("GET", path, headers=told) == events
    assert len(api.behind.worker.calls) == 1


async def test_events_as_json_and_as_a_stream_that_follows(api: Api) -> None:
    await api.client.post("/agents/helper/run", json={**HI, "message_id": "m"})
    path = "/agents/helper/conversations/http-helper/events"
    page = (await api.client.get(path + "?limit=2")).json()
    assert ([event["sequence"] for event in page["events"]], page["more"]) == ([1, 2], True)
    page = (await api.client.get(path + "?after=4")).json()
    assert ([event["sequence"] for event in page["events"]], page["more"]) == ([5, 6], False)
    ended = await api.events("GET", path + "?follow=false", headers={"accept": "text/event-stream"})
    assert [event["id"] for event in ended] == ["1", "2", "3", "4", "5", "6"]
    async with api.client.stream("GET", path + "?follow=true&after=5") as response:
        lines = response.aiter_lines()
        assert [await anext(lines) for _ in range(2)] == ["id: 6", "event: completion"]
        await api.behind.log.append(
            Key("local", "helper", "http-helper"), proto.Event(state=proto.StateChange(version=1))
        )
        assert [line async for line in _until(lines, "event: state")][-2:] == ["id: 7", "event: state"]


async def _until(lines: AsyncIterator[str], wanted: str) -> AsyncIterator[str]:
    async for line in lines:
        yield line
        if line == wanted:
            return


async def test_whoever_waits_hears_that_the_connection_lives(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "_BEAT_S", 0.05)
    api.behind.worker.gate.clear()
    async with api.client.stream("POST", "/agents/helper/run", json={**HI, "stream": True}) as response:
        lines = response.aiter_lines()
        beats = 0
        while beats < 3:
            beats += (await anext(lines)).startswith(":")
        api.behind.worker.gate.set()
        rest = "\n".join([line async for line in lines])
    assert [event["event"] for event in parsed(rest)][-1] == "completion"


async def test_whoever_hangs_up_is_not_waited_for_and_the_message_goes_on(api: Api) -> None:
    api.behind.worker.gate.clear()
    async with api.client.stream("POST", "/agents/helper/run", json={**HI, "stream": True}) as response:
        await anext(response.aiter_lines())
    await eventually(lambda: api.behind.worker.ended == 1)
    api.behind.worker.gate.set()
    await eventually(lambda: len(api.behind.log.events[Key("local", "helper", "http-helper")]) == 6)


async def test_time_that_is_over(api: Api) -> None:
    api.behind.worker.gate.clear()
    body = {**HI, "message_id": "m", "timeout_s": 0.2}
    response = await api.client.post("/agents/helper/run", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "DEADLINE_EXCEEDED")
    assert response.json()["error"]["metadata"] == {"conversation_id": "http-helper", "message_id": "m"}
    events = await api.events("POST", "/agents/helper/run", json={**body, "stream": True})
    assert [event["event"] for event in events] == ["message", "attempt", "chunk", "error"]
    assert events[-1]["error"]["code"] == "DEADLINE_EXCEEDED"


async def test_conversations_are_read_and_cancelled_and_deleted_by_whose_they_are(api: Api) -> None:
    await api.client.post("/agents/helper/run", json={**HI, "conversation_id": "c", "message_id": "m"})
    base = "/agents/helper/conversations"
    (listed,) = (await api.client.get(base)).json()["conversations"]
    found = (await api.client.get(base + "/c")).json()
    assert (listed["conversation_id"], found["last_sequence"], found["messages"]) == ("c", 6, [])
    other = {"x-uapi-principal": "key:other"}
    assert (await api.client.get(base + "/c", headers=other)).status_code == 403
    cancelled = await api.client.post(base + "/c/messages/m/cancel")
    assert (cancelled.json(), api.behind.log.cancelled) == (
        {"status": "cancelled"},
        [(Key("local", "helper", "c"), "m")],
    )
    assert (await api.client.delete(base + "/c")).status_code == 204
    for method, path in (("GET", "/c"), ("GET", "/c/events"), ("DELETE", "/c")):
        response = await api.client.request(method, base + path)
        assert (response.status_code, response.json()["error"]["reason"]) == (404, "CONVERSATION_NOT_FOUND")
    stream = await api.client.get(base + "/c/events", headers={"accept": "text/event-stream"})
    assert stream.status_code == 404


async def test_an_agent_that_only_generates_keeps_nothing(api: Api) -> None:
    answer = (await api.client.post("/agents/plain/run", json=HI, headers=ANONYMOUS)).json()
    assert (answer["messages"][0]["content"], answer["conversation_id"]) == ("Hi", "")
    events = await api.events("POST", "/agents/plain/run", json={**HI, "stream": True})
    assert [(event["id"], event["event"]) for event in events] == [
        (None, "message"),
        (None, "chunk"),
        (None, "chunk"),
        (None, "completion"),
    ]


@pytest.mark.parametrize(
    ("path", "body", "expected", "words"),
    [
        ("/agents/nobody/run", HI, (404, "AGENT_NOT_FOUND"), "nobody"),
        ("/agents/other/run", HI, (400, "NO_CONVERSATIONS"), "on_message"),
        ("/agents/helper/run", {}, (400, "INVALID_DATA"), "messages: Field required"),
        ("/agents/helper/run", {**HI, "steam": True}, (400, "INVALID_DATA"), "steam"),
        ("/agents/helper/run", {**HI, "agent_name": "plain"}, (400, "INVALID_ARGUMENT"), "plain"),
        (
            "/agents/helper/run",
            {"messages": [{"role": "assistant", "content": "x"}]},
            (400, "INVALID_ARGUMENT"),
            "user",
        ),
        ("/agents/helper/run", {**HI, "message_id": "ü"}, (400, "INVALID_ID"), "ASCII"),
        ("/agents/helper/run", {"messages": [{"content": [{}]}]}, (400, "INVALID_DATA"), "exactly one"),
        ("/agents/helper/run", {"messages": [{"content": [{"blob": "?"}]}]}, (400, "INVALID_DATA"), "base64"),
        ("/agents/helper/run", {"messages": [1] * 40_000}, (400, "INVALID_DATA"), "messages.0"),
        ("/agents/helper/run", {"messages": [{"content": ""}] * 1002}, (400, "INVALID_DATA"), "at most 1001"),
        (
            "/agents/helper/run",
            {"messages": [{"content": [{"text": ""}] * 1001}]},
            (400, "INVALID_DATA"),
            "at most 1000",
        ),
        ("/agents/helper/run", {str(n): 1 for n in range(40_000)}, (400, "INVALID_DATA"), "1000 keys"),
        (
            "/agents/helper/run",
            {"messages": [{"content": "", "metadata": {str(n): 1 for n in range(40_000)}}]},
            (400, "INVALID_DATA"),
            "1000 keys",
        ),
        ("/agents/helper/run", {"messages": [{"content": [{"data": [1] * 50_000}]}]}, TOO_LARGE, "50000 values"),
        ("/agents/helper/run", {"messages": [[]] * 1_400_000}, TOO_LARGE, "50000 values"),
        (
            "/agents/helper/run",
            {"messages": [{"content": [{"data": json.loads("[" * 40 + "]" * 40)}]}]},
            (400, "INVALID_DATA"),
            "deeper",
        ),
        ("/agents/helper/run", {"messages": [{"content": "\ud800"}]}, (400, "INVALID_DATA"), "half a character"),
        ("/agents/helper/run?principal=key:other", HI, (400, "INVALID_ARGUMENT"), "you are local"),
        ("/agents/helper/nothing", HI, (404, "NOT_FOUND"), "/docs"),
        ("/agents", HI, (405, "HTTP"), "/docs"),
    ],
)
async def test_refusals_say_why(api: Api, path: str, body: Any, expected: tuple[int, str], words: str) -> None:
    for more in ({}, {"stream": True}):
        # As ASCII, for it may have half characters.
        said, headers = json.dumps({**body, **more}), {"content-type": "application/json"}
        response = await api.client.post(path, content=said, headers=headers)
        error = response.json()["error"]
        assert (response.status_code, error["reason"]) == expected, error
        assert words in error["message"]


async def test_a_body_that_is_no_json_and_a_principal_of_others(api: Api) -> None:
    headers = {"content-type": "application/json"}
    response = await api.client.post("/agents/helper/run", content='{"messages"', headers=headers)
    error = response.json()["error"]
    assert (response.status_code, error["reason"]) == (400, "INVALID_JSON")
    assert error["message"].startswith("the body is not JSON: Expecting")
    for path in ("/agents/helper/conversations", "/agents/helper/conversations/c/events"):
        assert "you are local" in (await api.client.get(f"{path}?principal=key:other")).json()["error"]["message"]
    assert (await api.client.get("/agents/helper/conversations?principal=local")).status_code == 200


async def test_who_may_not_call_the_agent_is_told_by_the_status(api: Api) -> None:
    for path in ("/agents/helper/run", "/agents/helper/conversations/c/messages/m/cancel"):
        response = await api.client.post(path, json=HI, headers=ANONYMOUS)
        assert (response.status_code, response.json()["error"]["reason"]) == (401, "CREDENTIAL_MISSING")
        assert response.headers["www-authenticate"] == "Bearer"
    # Nobody looks at what it sends.
    response = await api.client.post("/agents/helper/run", json={"messages": 1}, headers=ANONYMOUS)
    assert response.status_code == 401


@pytest.mark.parametrize(
    ("agent", "more", "expected"),
    [
        ("nobody", {}, (404, "AGENT_NOT_FOUND")),
        ("other", {}, (400, "NO_CONVERSATIONS")),
        ("helper", {"message_id": "ü"}, (400, "INVALID_ID")),
        ("helper", {"conversation_id": "ü"}, (400, "INVALID_ID")),
    ],
)
async def test_whoever_goes_on_is_refused_by_the_status_too(
    api: Api, agent: str, more: dict[str, str], expected: tuple[int, str]
) -> None:
    body = {**HI, "message_id": "m", "stream": True, **more}
    response = await api.client.post(f"/agents/{agent}/run", json=body, headers={"last-event-id": "3"})
    assert (response.status_code, response.json()["error"]["reason"]) == expected


@pytest.mark.parametrize("stream", [False, True])
async def test_whoever_hangs_up_ends_what_is_generated_for_nobody_else(api: Api, stream: bool) -> None:
    api.behind.worker.gate.clear()
    with pytest.raises(httpx.ReadTimeout):
        await api.client.post("/agents/plain/run", json={**HI, "stream": stream}, timeout=0.5)
    await eventually(lambda: api.behind.worker.ended == 1)
    assert not api.behind.worker.gate.is_set()


async def test_an_agent_that_only_generates_and_is_not_there_is_an_error_of_the_request(api: Api) -> None:
    api.behind.worker.refuses = errors.AgentNotReady("none is ready")
    response = await api.client.post("/agents/plain/run", json={**HI, "stream": True})
    assert (response.status_code, response.json()["error"]["reason"]) == (503, "AGENT_NOT_READY")


async def test_what_the_agent_fails_with(api: Api) -> None:
    api.behind.worker.refuses = errors.ConversationBusy("a message runs already")
    response = await api.client.post("/agents/helper/run", json={**HI, "stream": True})
    assert (response.status_code, response.json()["error"]["reason"]) == (409, "CONVERSATION_BUSY")
    key = Key("local", "helper", "http-helper")
    failure = proto.Failure(code=14, reason="MESSAGE_SET_ASIDE", message="it ended three workers")
    await api.behind.log.append(
        key, proto.Event(message_id="m", message=proto.ChatMessage()), proto.Event(message_id="m", failure=failure)
    )
    api.behind.worker.refuses = None
    response = await api.client.post("/agents/helper/run", json={**HI, "message_id": "m"})
    assert (response.status_code, response.json()["error"]["reason"]) == (503, "MESSAGE_SET_ASIDE")


async def test_what_nobody_foresaw_hides_what_it_was(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.behind.sender, "collect", lambda *_, **__: 1 / 0)
    with capture_logs() as logged:
        response = await api.client.post("/agents/helper/run", json=HI)
    assert [each["event"] for each in logged] == ["unforeseen error"]
    assert response.status_code == 500
    assert "division" not in response.text
    assert response.json()["error"]["metadata"]["request_id"]


async def test_what_curl_sends_is_taken_for_json(api: Api) -> None:
    said = json.dumps({**HI, "stream": True})
    process = await asyncio.create_subprocess_exec(
        "curl", "-sN", "-m", "10", f"{api.client.base_url}/agents/helper/run", "-d", said,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert [event["event"] for event in parsed(output.decode())] == KINDS


async def test_the_description_needs_nothing_from_elsewhere(api: Api) -> None:
    document = (await api.client.get("/openapi.json")).json()
    assert set(document["paths"]) == {
        "/agents",
        "/agents/{agent_name}/run",
        "/agents/{agent_name}/conversations",
        "/agents/{agent_name}/conversations/{conversation_id}",
        "/agents/{agent_name}/conversations/{conversation_id}/events",
        "/agents/{agent_name}/conversations/{conversation_id}/messages/{message_id}/cancel",
    }
    page = (await api.client.get("/docs")).text
    assert "POST /agents/{agent_name}/run" in page
    assert "http:" not in page
    assert "https:" not in page
    assert "<script" not in page
