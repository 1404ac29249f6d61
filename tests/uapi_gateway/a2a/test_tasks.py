"""Events as a task: what updates say, and what the task then is."""

from typing import Any

import pytest
from a2a.types import a2a_pb2 as a2a
from a2a.utils.errors import InvalidParamsError
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from google.protobuf import json_format, struct_pb2

from uapi_gateway.a2a.tasks import REPLY, TaskView, Update, joined, message_in, part_out


def event(sequence: int = 0, **content: Any) -> proto.Event:
    return proto.Event(sequence=sequence, message_id="m", **content)


def text(said: str) -> proto.Part:
    return proto.Part(text=said)


def begun(*events: proto.Event) -> tuple[TaskView, list[Update]]:
    view = TaskView("c", "m")
    asked = event(message=proto.ChatMessage(parts=[text("Hi")]))
    return view, [
        update for each in (asked, event(attempt=proto.Attempt(number=1)), *events) for update in view.add(each)
    ]


def taken_up(updates: list[Update]) -> list[str]:
    """What a client has of the reply that goes by `append`, as A2A has it."""
    texts: list[str] = []
    for update in updates:
        if isinstance(update, a2a.TaskArtifactUpdateEvent):
            assert update.artifact.artifact_id == REPLY
            said = [part.text for part in update.artifact.parts]
            texts = [*texts, *said] if update.append else said
    return texts


def reply_of(view: TaskView) -> str:
    return "".join(part.text for artifact in view.task().artifacts for part in artifact.parts)


@pytest.mark.parametrize(
    ("events", "reply"),
    [
        ([event(completion=proto.ChatMessage(parts=[text("whole")]))], "whole"),
        (
            [event(chunk=text("a")), event(chunk=text("b")), event(completion=proto.ChatMessage(parts=[text("ab")]))],
            "ab",
        ),
        # Begun again: what was said before counts no more.
        (
            [
                event(chunk=text("lost")),
                event(attempt=proto.Attempt(number=2)),
                event(chunk=text("a")),
                event(completion=proto.ChatMessage(parts=[text("a")])),
            ],
            "a",
        ),
        (
            [
                event(chunk=text("lost")),
                event(attempt=proto.Attempt(number=2)),
                event(completion=proto.ChatMessage(parts=[text("b")])),
            ],
            "b",
        ),
        # Said one thing, returned another.
        ([event(chunk=text("a")), event(completion=proto.ChatMessage(parts=[text("b")]))], "b"),
        ([event(completion=proto.ChatMessage())], ""),
        ([event(state=proto.StateChange(version=1)), event(completion=proto.ChatMessage(parts=[text("x")]))], "x"),
    ],
)
def test_updates_and_task_agree(events: list[proto.Event], reply: str) -> None:
    view, updates = begun(*events)
    assert "".join(taken_up(updates)) == reply_of(view) == reply
    assert isinstance(updates[-1], a2a.TaskStatusUpdateEvent)
    assert view.state == updates[-1].status.state == a2a.TASK_STATE_COMPLETED
    assert view.ended


def test_the_last_piece_says_so() -> None:
    _, updates = begun(event(chunk=text("a")), event(completion=proto.ChatMessage(parts=[text("a")])))
    pieces = [update for update in updates if isinstance(update, a2a.TaskArtifactUpdateEvent)]
    assert [piece.last_chunk for piece in pieces] == [False, True]


def test_a_later_attempt_is_told() -> None:
    _, updates = begun(event(attempt=proto.Attempt(number=2)))
    assert isinstance(updates[1], a2a.TaskStatusUpdateEvent)
    assert json_format.MessageToDict(updates[1].metadata) == {"attempt": 2}


def test_an_attempt_after_an_interruption_begins_anew() -> None:
    attempt = event(attempt=proto.Attempt(number=1))
    interruption = event(interruption=proto.Interruption())
    view, updates = begun(event(chunk=text("lost")), interruption, attempt, event(chunk=text("a")))
    assert taken_up(updates) == ["a"]
    assert reply_of(view) == "a"
    [_, _, again, _] = updates
    assert isinstance(again, a2a.TaskStatusUpdateEvent)
    assert json_format.MessageToDict(again.metadata) == {"attempt": 1}


@pytest.mark.parametrize(("code", "state"), [(1, a2a.TASK_STATE_CANCELED), (14, a2a.TASK_STATE_FAILED)])
def test_a_failure_ends_it_with_why(code: int, state: int) -> None:
    view, _ = begun(event(failure=proto.Failure(code=code, reason="WHY", message="so", traceback="secret")))
    task = view.task()
    assert task.status.state == state
    assert task.status.message.parts[0].text == "so"
    assert "secret" not in str(task)


def test_what_was_said_before_is_not_its_history() -> None:
    view = TaskView("c", "m")
    assert view.add(event(earlier=proto.ChatMessage(parts=[text("before")]))) == []
    assert not view.begun


def test_parts_come_back_as_they_were() -> None:
    data = struct_pb2.Value(list_value=struct_pb2.ListValue(values=[struct_pb2.Value(number_value=1)]))
    parts = [
        a2a.Part(text=""),
        a2a.Part(text="t", media_type="text/markdown"),
        a2a.Part(raw=b"\0", media_type="image/png", filename="a.png"),
        a2a.Part(url="http://localhost/"),
        a2a.Part(data=data),
    ]
    metadata = struct_pb2.Struct()
    metadata.update({"a": "text", "b": [1]})
    more = struct_pb2.Struct()
    more.update({"a": "of the request", "c": True})
    said = message_in(a2a.Message(parts=parts, metadata=metadata), more)
    assert [part_out(part) for part in said.parts] == parts
    assert dict(said.metadata) == {"a": "text", "b": "[1.0]", "c": "true"}


@pytest.mark.parametrize("part", [a2a.Part(), a2a.Part(data=struct_pb2.Value(number_value=float("nan")))])
def test_what_cannot_be_read_is_refused(part: a2a.Part) -> None:
    with pytest.raises(InvalidParamsError, match="cannot be read"):
        message_in(a2a.Message(parts=[part]), struct_pb2.Struct())


def test_numbers_that_json_does_not_have_are_named() -> None:
    made = struct_pb2.Value()
    made.struct_value.fields["a"].list_value.values.add(number_value=float("inf"))
    made.struct_value.fields["b"].number_value = float("nan")
    view, _ = begun(event(completion=proto.ChatMessage(parts=[proto.Part(data=made)])))
    artifact = json_format.MessageToDict(view.task().artifacts[0])
    assert artifact["parts"] == [{"data": {"a": ["Infinity"], "b": "NaN"}}]


def test_texts_are_joined_and_others_are_not() -> None:
    marked = proto.Part(text="m", media_type="text/markdown")
    assert joined([text("a"), text("b"), marked, text(""), text("c")]) == [text("ab"), marked, text("c")]
