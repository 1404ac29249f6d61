"""`agent conversations`."""

import json
from pathlib import Path

import pytest
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.conversation import to_value
from google.protobuf import json_format, struct_pb2

from tests.agentruntime.cli.conftest import Agent
from tests.agentruntime.conversation_service import Log, said
from tests.agentruntime.platform_services import Record


@pytest.fixture
def log(record: Record) -> Log:
    return record.log


@pytest.fixture
def first(log: Log) -> list[proto.Event]:
    """A conversation in which everything happened."""
    log.append("first", "", earlier=said("before"))
    log.append("first", "m-1", message=proto.ChatMessage(parts=[proto.Part(text="hello\nthere\x1b[31m")]))
    log.append("first", "m-1", attempt=proto.Attempt(number=2, worker_id="helper-01"))
    log.append("first", "m-1", chunk=proto.Part(blob=b"\x00\xff", media_type="image/png"))
    call = proto.ToolCall(call_id="1", name="search", arguments=to_value({"q": ["x", 1.5, None]}))
    log.append("first", "m-1", tool_call=call)
    log.append("first", "m-1", state=proto.StateChange(version=3))
    log.append("first", "m-1", cancellation=proto.Cancellation())
    log.append("first", "m-1", failure=proto.Failure(code=1, reason="CANCELLED", message="it was cancelled"))
    log.append("first", "m-2", message=said("again"))
    log.append("first", "m-2", completion=said("done"))
    log.events["first"][0].token = 2**60 + 1
    return log.events["first"]


def test_list(agent: Agent, log: Log, record: Record) -> None:
    for number in range(3):
        log.append(f"c-{number}", "m", message=said("x"))
    lines = agent("conversations", "list", "helper", "--all").out.splitlines()
    assert lines[0].split() == ["CONVERSATION", "AGENT", "PRINCIPAL", "CHANGED", "(UTC)", "EVENTS", "SIZE"]
    assert [line.split()[0] for line in lines[1:]] == ["c-0", "c-1", "c-2"]
    assert (record.requests[0].agent, record.requests[0].all_principals) == ("helper", True)
    assert [each["last_sequence"] for each in json.loads(agent("conversations", "list", "-o", "json").out)] == [1] * 3
    assert not record.requests[-1].all_principals


def test_show(agent: Agent, first: list[proto.Event], record: Record) -> None:
    result = agent("conversations", "show", "helper", "first", "--principal", "key:ci")
    head, *lines = result.out.splitlines()
    assert head.startswith("conversation first of local with helper: 10 events, 1.23kB, last changed at 2023-11-14")
    # What a caller said moves nobody's cursor.
    assert [line[21:] for line in lines if line[:2] == "20"] == [
        "assistant: before",
        "user: hello",
        "assistant: (cancelled)",
        "assistant: again",
        "assistant: done",
    ]
    assert "there\\x1b[31m" in lines
    assert {(request.agent, request.principal) for request in record.requests} == {("helper", "key:ci")}
    assert not any("x-uapi-agent" in metadata for _, metadata in record.log.calls)
    events = agent("conversations", "show", "helper", "first", "--events").out.splitlines()[1:]
    assert [line.split("  ")[0] for line in events] == [str(number) for number in range(1, 11)]
    assert events[2].endswith("token 1  m-1  attempt  2 by helper-01")
    assert events[4].endswith('tool_call  search {"arguments": {"q": ["x", 1.5, null]}}')
    data = json.loads(agent("conversations", "show", "helper", "first", "-o", "json").out)
    assert (data["conversation"]["conversation_id"], len(data["events"])) == ("first", 10)


def test_an_export_loses_nothing(agent: Agent, first: list[proto.Event]) -> None:
    out = agent("conversations", "export", "helper", "first").out
    assert [json_format.ParseDict(json.loads(line), proto.Event()) for line in out.splitlines()] == first
    result = agent("conversations", "export", "helper", "first", "-o", "first.jsonl")
    assert (result.out, result.err) == ("", "10 events of first are in first.jsonl\n")
    assert Path("first.jsonl").read_text() == out
    result = agent("conversations", "export", "helper", "first", "-o", "nowhere/first.jsonl")
    assert (result.status, result.err.count("\n")) == (13, 1)
    assert "nowhere/first.jsonl cannot be written" in result.err


def test_numbers_that_json_does_not_have(agent: Agent, log: Log) -> None:
    parts = [proto.Part(data=struct_pb2.Value(number_value=float("inf")))]
    log.append("odd", "m-1", completion=proto.ChatMessage(parts=parts))
    result = agent("conversations", "export", "helper", "odd", "-o", "odd.jsonl")
    assert (result.status, result.err.count("\n"), Path("odd.jsonl").exists()) == (21, 1, False)
    assert "assistant: Infinity" in agent("conversations", "show", "helper", "odd").out


def test_delete(agent: Agent, first: list[proto.Event], record: Record) -> None:
    result = agent("conversations", "delete", "helper", "first")
    assert (result.status, result.err) == (13, "error: nobody is there to be asked; say --yes to delete it\n")
    delete = ("conversations", "delete", "helper", "first", "--yes", "--principal", "key:ci")
    assert agent(*delete).out == "deleted first\n"
    assert record.requests[-1] == proto.DeleteConversationRequest(
        conversation_id="first", agent="helper", principal="key:ci"
    )
    result = agent(*delete)
    assert (result.status, result.err) == (15, "error: conversation 'first' not found\n")
    result = agent("conversations", "show", "helper", "first")
    assert (result.status, "--principal" in result.err) == (15, True)
    assert "--principal" not in agent("conversations", "show", "helper", "first", "--principal", "key:ci").err


def test_of_an_empty_list_it_is_said_that_others_may_have_some(agent: Agent, log: Log) -> None:
    assert "--all" in agent("conversations", "list").err
    assert not agent("conversations", "list", "--all").err
    log.append("c", "m", message=said("x"))
    assert not agent("conversations", "list").err
