"""Events as a worker would append them, and what they become."""

from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto

from uapi_gateway.conversations.store import Append, Appended, Key, Lease

KEY = Key("alice", "helper", "first")
CANCELLED = 1


def said(message_id: str, text: str = "Hi") -> proto.Event:
    """A message."""
    return proto.Event(message_id=message_id, message=proto.ChatMessage(parts=[proto.Part(text=text)]))


def begun(message_id: str, number: int = 1) -> proto.Event:
    """An attempt."""
    return proto.Event(message_id=message_id, attempt=proto.Attempt(number=number, worker_id="helper-01"))


def piece(message_id: str, text: str = "Ho") -> proto.Event:
    """A piece of a reply."""
    return proto.Event(message_id=message_id, chunk=proto.Part(text=text))


def completed(message_id: str, text: str = "Ho") -> proto.Event:
    """The end of a message."""
    return proto.Event(message_id=message_id, completion=proto.ChatMessage(parts=[proto.Part(text=text)]))


def failed(message_id: str, code: int = 13) -> proto.Event:
    """Another one."""
    return proto.Event(message_id=message_id, failure=proto.Failure(code=code, reason="BROKEN"))


def state() -> proto.Event:
    """The state is set."""
    return proto.Event(state=proto.StateChange())


def append(lease: Lease, *events: proto.Event, key: Key = KEY, after: int | None = None) -> Append:
    """What the holder of a lease has to write."""
    return Append(key, lease.token, events, after=after)


def texts(events: list[proto.Event]) -> list[str]:
    """Of events, shortly: "1 message m1"."""
    return [f"{event.sequence} {event.WhichOneof('content')} {event.message_id}".strip() for event in events]


def written(answer: object) -> int:
    """The last sequence number, of an append that was not refused."""
    assert isinstance(answer, Appended), answer
    assert answer.known is None, answer
    return answer.last_sequence
