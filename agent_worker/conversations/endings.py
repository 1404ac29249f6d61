"""Events by which messages end otherwise than by what the author's code says."""

from collections.abc import Sequence

from agentruntime import errors, status
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime._proto.uapi.v1 import event_log_pb2 as wire

from agent_worker.conversations.message import Message

# Workers that a message may end, until it is set aside.
MOST_ATTEMPTS = 3


def failed(error: errors.AgentError, message_id: str, traceback: str = "") -> proto.Event:
    """The failure of a message."""
    failure = proto.Failure(
        code=status.code_of(error).value[0],
        reason=error.reason,
        message=error.message,
        metadata=error.metadata,
        traceback=traceback,
    )
    return proto.Event(message_id=message_id, failure=failure)


def cancellation(message: Message) -> proto.Event:
    return proto.Event(message_id=message.message_id, cancellation=proto.Cancellation())


def cancelled(message: Message) -> proto.Event:
    return failed(errors.Cancelled("the message was cancelled, or interrupted by a later one"), message.message_id)


def set_aside(message: Message, lost: Sequence[wire.LostWorker]) -> proto.Event:
    """It has ended too many workers, of which so much is known."""
    reasons = _reasons(lost)
    error = errors.MessageSetAside(
        f"the message was begun {MOST_ATTEMPTS} times, and each time its worker ended; it is not handled again"
        + (f": {reasons}" if reasons else "; `agent logs` has what the workers said")
    )
    return failed(error, message.message_id, "\n".join(each.traceback for each in lost if each.traceback))


def ambiguous(message: Message, lost: Sequence[wire.LostWorker]) -> proto.Event:
    """It was begun, and is not to be begun again."""
    reasons = _reasons(lost)
    error = errors.MessageAmbiguous(
        "the worker ended while it handled the message, which may have had effects; send another one to go on"
        + (f" ({reasons})" if reasons else "")
    )
    return failed(error, message.message_id)


def _reasons(lost: Sequence[wire.LostWorker]) -> str:
    return "; ".join(each.reason or f"worker {each.worker_id} ended" for each in lost)
