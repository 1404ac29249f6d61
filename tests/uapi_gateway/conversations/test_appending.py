"""What becomes of a batch of appends."""

import pytest
from agentruntime import errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.errors import AgentError
from hypothesis import given
from hypothesis import strategies as st

from uapi_gateway.conversations.appending import INLINE_BYTES, MAX_EVENT_BYTES, Head, Message, Plan, token_of
from uapi_gateway.conversations.store import Append, Appended, Key

from .saying import CANCELLED, KEY, begun, completed, failed, piece, said, state

TOKEN = token_of(7, 2)
FULL = 1_000_000


def plan(last_sequence: int = 0, **messages: Message) -> Plan:
    """For a batch to the conversation of number 7."""
    unended = sum(not message.last_sequence for message in messages.values())
    head = Head(7, 2, last_sequence, 0, 0, 0, unended)
    return Plan({KEY: head}, {(7, name): message for name, message in messages.items()}, 5, FULL)


def append(*events: proto.Event, token: int = TOKEN, **more: object) -> Append:
    return Append(KEY, token, events, **more)  # type: ignore[arg-type]  # the tests name fields of it


def messages(made: Plan) -> dict[str, str]:
    """Of each message its status, attempts, and where it begins and ends."""
    return {
        name: f"{proto.MessageStatus.Name(message.status)[15:]} {message.attempts} "  # type: ignore[arg-type]  # int
        f"{message.first_sequence}-{message.last_sequence}"
        for (_, name), message in made.changed_messages.items()
    }


def test_events_are_numbered_without_a_gap_and_stamped() -> None:
    made = plan(last_sequence=3)
    answers = made.add_all([append(said("a"), begun("a")), append(piece("a"))])
    assert answers == [Appended(5), Appended(6)]
    events = [proto.Event.FromString(row[4]) for row in made.events]
    assert [(event.sequence, event.token, event.time.ToNanoseconds()) for event in events] == [
        (4, TOKEN, 5),
        (5, TOKEN, 5),
        (6, TOKEN, 5),
    ]
    assert events[0].message.parts[0].text == "Hi"
    assert sum(row[3] for row in made.events) == made.changed_heads[7].bytes


@pytest.mark.parametrize(
    ("events", "is_then"),
    [
        ([said("a")], "PENDING 0 1-0"),
        ([said("a"), begun("a")], "RUNNING 1 1-0"),
        ([said("a"), begun("a"), begun("a", 2)], "RUNNING 2 1-0"),
        ([said("a"), begun("a", 0)], "RUNNING 1 1-0"),
        ([said("a"), begun("a"), piece("a"), completed("a")], "COMPLETED 1 1-4"),
        ([said("a"), begun("a"), failed("a")], "FAILED 1 1-3"),
        ([said("a"), failed("a", CANCELLED)], "CANCELLED 0 1-2"),
    ],
)
def test_a_message_s_status_comes_from_its_events(events: list[proto.Event], is_then: str) -> None:
    for together in (True, False):
        made = plan()
        made.add_all([append(*events)] if together else [append(event) for event in events])
        assert messages(made) == {"a": is_then}
        assert made.changed_heads[7].unended == (is_then[-1] == "0")


@pytest.mark.parametrize(
    ("refused", "error"),
    [
        (append(said("b"), token=TOKEN - 1), errors.LeaseLost),
        (append(said("b"), token=TOKEN + 1), errors.LeaseLost),
        (Append(Key("bob", "helper", "first"), TOKEN, (said("b"),)), errors.LeaseLost),
        (append(state(), expected_state_version=1), errors.StateConflict),
        (append(proto.Event(state=proto.StateChange(version=2))), errors.StateConflict),
        (append(state(), state(), state=b"1"), errors.InvalidArgument),
        (append(said("b"), said("b")), errors.InvalidArgument),
        (append(said("")), errors.InvalidArgument),
        (append(said("b\0")), errors.InvalidArgument),
        (append(said("ü")), errors.InvalidArgument),
        (append(said("b" * 201)), errors.InvalidArgument),
        (append(proto.Event(message_id="a")), errors.InvalidArgument),
        (append(piece("b")), errors.MessageNotFound),
        (append(completed("done")), errors.FailedPrecondition),
        (append(piece("done")), errors.FailedPrecondition),
        (append(said("b", "x" * (MAX_EVENT_BYTES + 1))), errors.MessageTooLarge),
        (append(said("b", "x" * (FULL + 1))), errors.ConversationFull),
        (append(said("b"), after=0), errors.Aborted),
    ],
)
def test_a_refused_append_leaves_nothing(refused: Append, error: type[AgentError]) -> None:
    made = plan(2, done=Message(proto.MESSAGE_STATUS_COMPLETED, 1, 1, 2))
    [answer] = made.add_all([refused])
    assert type(answer) is error, answer
    assert not any((made.events, made.changed_heads, made.changed_messages, made.states, made.blobs))


def test_what_follows_a_refused_append_is_refused_too() -> None:
    made = plan()
    other = Key("bob", "helper", "first")
    made.heads = {**made.heads, other: Head(8, 1, 0, 0, 0, 0, 0)}
    first, second, elsewhere = made.add_all(
        [append(piece("a")), append(said("b")), Append(other, token_of(8, 1), (said("b"),))]
    )
    assert isinstance(first, errors.MessageNotFound)
    assert second is first
    assert elsewhere == Appended(1)


def test_a_conflict_of_the_state_keeps_nothing_else_out() -> None:
    conflict, next_one = plan().add_all([append(state(), expected_state_version=4), append(said("a"))])
    assert isinstance(conflict, errors.StateConflict)
    assert next_one == Appended(1)


def test_a_known_message_is_answered_by_what_became_of_it() -> None:
    made = plan(2, a=Message(proto.MESSAGE_STATUS_COMPLETED, 1, 1, 2))
    known, new = made.add_all([append(said("a"), begun("a")), append(said("b"))])
    assert isinstance(known, Appended)
    assert known.known == proto.MessageInfo(
        message_id="a", status=proto.MESSAGE_STATUS_COMPLETED, attempts=1, first_sequence=1, last_sequence=2
    )
    assert new == Appended(3)


def test_an_append_that_may_have_been_written_is_written_once() -> None:
    made = plan(3, a=Message(proto.MESSAGE_STATUS_RUNNING, 1, 1, 0))
    again = append(piece("a"), state(), state=b"1", expected_state_version=0, after=1)
    assert made.add_all([again]) == [Appended(3)]
    assert not made.events
    assert plan(1, a=Message(proto.MESSAGE_STATUS_RUNNING, 1, 1, 0)).add_all([again]) == [Appended(3)]
    [lost] = plan(3).add_all([append(piece("a"), token=TOKEN - 1, after=2)])
    assert isinstance(lost, errors.LeaseLost)


def test_the_state_has_versions() -> None:
    made = plan()
    answers = made.add_all(
        [
            append(state(), state=b"[1]", expected_state_version=0),
            append(state(), state=b"[12]", expected_state_version=0),
            append(proto.Event(state=proto.StateChange(version=2)), state=b"[123]"),
        ]
    )
    assert [type(answer) for answer in answers] == [Appended, errors.StateConflict, Appended]
    assert made.states == {7: b"[123]"}
    assert (made.changed_heads[7].state_version, made.changed_heads[7].state_bytes) == (2, 5)
    assert [proto.Event.FromString(row[4]).state.version for row in made.events] == [1, 2]


def test_a_large_event_is_a_blob_and_a_stamp() -> None:
    made = plan()
    made.add_all([append(said("a", "x" * INLINE_BYTES), begun("a"))])
    large, small = made.events
    assert small[5] is None
    event = proto.Event.FromString(made.blobs[7, large[5] or b""] + large[4])
    assert (event.sequence, event.message.parts[0].text) == (1, "x" * INLINE_BYTES)
    assert large[3] == len(event.SerializeToString())


def test_a_message_can_fail_in_a_full_conversation() -> None:
    made = plan(1, a=Message(proto.MESSAGE_STATUS_RUNNING, 1, 1, 0))
    made.heads[KEY].bytes = FULL
    [refused] = made.add_all([append(piece("a"))])
    assert isinstance(refused, errors.ConversationFull)
    assert plan_of_full().add_all([append(failed("a"))]) == [Appended(2)]


def plan_of_full() -> Plan:
    made = plan(1, a=Message(proto.MESSAGE_STATUS_RUNNING, 1, 1, 0))
    made.heads[KEY].bytes = FULL
    return made


EVENTS = st.sampled_from([said, begun, piece, completed, failed])
APPENDS = st.lists(st.lists(st.tuples(EVENTS, st.sampled_from("abc")), min_size=1, max_size=4), max_size=20)


@given(APPENDS)
def test_whatever_comes_is_a_log(batch: list[list[tuple[object, str]]]) -> None:
    made = plan()
    appends = [append(*(make(name) for make, name in events)) for events in batch]  # type: ignore[operator]  # drawn
    answers = made.add_all(appends)
    rows = [proto.Event.FromString(row[4]) for row in made.events]
    assert [event.sequence for event in rows] == list(range(1, len(rows) + 1))
    taken = [len(events) for events, answer in zip(batch, answers, strict=True) if is_taken(answer)]
    assert sum(taken) == len(rows)
    for name in "abc":
        kinds = [event.WhichOneof("content") for event in rows if event.message_id == name]
        assert kinds.count("message") == bool(kinds)
        assert kinds[:1] in ([], ["message"])
        ends = [kind for kind in kinds if kind in ("completion", "failure")]
        assert len(ends) <= 1
        assert not ends or kinds[-1] == ends[0]


def is_taken(answer: Appended | AgentError) -> bool:
    return isinstance(answer, Appended) and answer.known is None
