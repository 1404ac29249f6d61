"""The verdict on conversations under kills finds what it is there to find."""

from collections.abc import Callable

import pytest
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto

from benchmarks.chaos.talks import Evidence, Turn, faults, judged


def _said(text: str) -> proto.ChatMessage:
    return proto.ChatMessage(parts=[proto.Part(text=text)])


def _log(*messages: str) -> list[proto.Event]:
    events = []
    for message_id in messages:
        events += [
            proto.Event(message_id=message_id, message=_said("slowly a b")),
            proto.Event(message_id=message_id, attempt=proto.Attempt(number=1, worker_id="w-01")),
            proto.Event(message_id=message_id, chunk=proto.Part(text="a ", name="process")),
            proto.Event(message_id=message_id, completion=_said("a b ")),
        ]
    for number, event in enumerate(events, 1):
        event.sequence, event.token = number, 1
    return events


def _evidence(*messages: str) -> Evidence:
    log = _log(*messages)
    turns = [
        Turn(each, "slowly a b", [event for event in log if event.message_id == each], reply="a b ")
        for each in messages
    ]
    return Evidence({"talk": turns}, {"talk": log}, ["worker", "gateway", "worker"])


def test_what_is_as_it_must_be_has_no_faults() -> None:
    seen = _evidence("a", "b")
    assert not any(faults(seen).values())
    table = judged(seen)
    assert "2 × worker, 1 × gateway" in table.how
    assert not any(row.missed for row in table.rows)


def _lose(seen: Evidence) -> None:
    log = [event for event in seen.logs["talk"] if event.message_id != "b"]
    seen.logs["talk"] = log


def _double(seen: Evidence) -> None:
    seen.logs["talk"].append(proto.Event(sequence=9, token=1, message_id="b", completion=_said("a b ")))


def _swap(seen: Evidence) -> None:
    seen.turns["talk"].reverse()


def _gap(seen: Evidence) -> None:
    for event in seen.logs["talk"][4:]:
        event.sequence += 1


def _fenced(seen: Evidence) -> None:
    seen.logs["talk"][0].token = 2


def _two(seen: Evidence) -> None:
    seen.logs["talk"][5].attempt.worker_id = "w-02"


def _replaced(seen: Evidence) -> None:
    seen.logs["talk"][6].chunk.name = "its replacement"


def _repeat(seen: Evidence) -> None:
    seen.turns["talk"][0].events.append(seen.turns["talk"][0].events[-1])


def _other(seen: Evidence) -> None:
    seen.turns["talk"][0].reply = "a c "


def _fail(seen: Evidence) -> None:
    seen.turns["talk"][0].reply = None
    seen.turns["talk"][0].error = "WORKER_LOST: it ended"


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (_lose, "acknowledged messages that are not on the log once"),
        (_double, "messages that were ended twice"),
        (_swap, "messages out of order"),
        (_gap, "gaps in a log"),
        (_fenced, "tokens that became smaller"),
        (_two, "leases of two workers"),
        (_replaced, "leases of two processes"),
        (_repeat, "streams with a gap, a repeat, or other events than the log"),
        (_other, "replies other than the log's"),
        (_fail, "messages that failed"),
    ],
)
def test_each_fault_is_found(spoil: Callable[[Evidence], None], expected: str) -> None:
    seen = _evidence("a", "b")
    spoil(seen)
    assert faults(seen)[expected]
    assert any(row.missed for row in judged(seen).rows)
