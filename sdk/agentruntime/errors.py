"""Every error the platform raises on purpose: a class per gRPC code in use, and leaves for the domain.

There is no gRPC in here; `status.py` maps these to codes and back. What is not an `AgentError` is a bug, and
reaches a caller only as INTERNAL with a request id.
"""

from collections.abc import Mapping


class AgentError(Exception):
    """Something went wrong that a caller can act on.

    Args:
        message: one sentence that says what is wrong and, where known, what to do.
        metadata: machine-readable details, sent along as `google.rpc.ErrorInfo.metadata`.

    The class attribute `reason` is the machine-readable name of what happened, `ErrorInfo.reason`. `begun` is False
    where the call surely had no effect yet, so that anybody may repeat it.
    """

    reason = "UNKNOWN"
    begun = True

    def __init__(self, message: str, *, reason: str | None = None, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})
        if reason is not None:
            self.reason = reason


class InvalidArgument(AgentError):
    """The request itself is wrong, whatever the state of the platform."""

    reason = "INVALID_ARGUMENT"


class NotFound(AgentError):
    """What was named does not exist."""

    reason = "NOT_FOUND"


class AlreadyExists(AgentError):
    """What should be made exists already."""

    reason = "ALREADY_EXISTS"


class PermissionDenied(AgentError):
    """The caller is known and may not do this."""

    reason = "PERMISSION_DENIED"


class Unauthenticated(AgentError):
    """The caller showed no valid credential."""

    reason = "UNAUTHENTICATED"


class ResourceExhausted(AgentError):
    """It does not fit: memory, CPU, GPUs, a queue, a message."""

    reason = "RESOURCE_EXHAUSTED"


class FailedPrecondition(AgentError):
    """The platform is not in a state for this; repeating it unchanged will not help."""

    reason = "FAILED_PRECONDITION"


class Aborted(AgentError):
    """Something else changed it at the same time; the whole operation may be repeated."""

    reason = "ABORTED"


class OutOfRange(AgentError):
    """A position beyond what there is."""

    reason = "OUT_OF_RANGE"


class Unimplemented(AgentError):
    """No such service or method."""

    reason = "UNIMPLEMENTED"


class Internal(AgentError):
    """A bug, here or in an agent."""

    reason = "INTERNAL"


class Unavailable(AgentError):
    """Nobody is there to answer now; the call may be repeated."""

    reason = "UNAVAILABLE"


class DataLoss(AgentError):
    """Stored data is damaged."""

    reason = "DATA_LOSS"


class DeadlineExceeded(AgentError):
    """The caller's time ran out."""

    reason = "DEADLINE_EXCEEDED"


class Cancelled(AgentError):
    """The caller hung up."""

    reason = "CANCELLED"


class AgentNotFound(NotFound):
    """No agent of that name is registered."""

    reason = "AGENT_NOT_FOUND"

    def __init__(self, agent: str) -> None:
        super().__init__(f"agent '{agent}' not found", metadata={"agent": agent})


class WorkerNotFound(NotFound):
    """No worker of that name exists."""

    reason = "WORKER_NOT_FOUND"


class ImageNotFound(NotFound):
    """No such image or tag."""

    reason = "IMAGE_NOT_FOUND"


class LeaseNotFound(NotFound):
    """The lease is unknown, or has run out."""

    reason = "LEASE_NOT_FOUND"


class AgentAmbiguous(InvalidArgument):
    """Several agents serve what was called, and the caller named none."""

    reason = "AGENT_AMBIGUOUS"


class AgentStopped(FailedPrecondition):
    """The agent was stopped by an operator."""

    reason = "AGENT_STOPPED"


class OtherRevision(FailedPrecondition):
    """The agent runs with another image or other settings than it was asked to; an update changes those."""

    reason = "OTHER_REVISION"


class AgentNotReady(Unavailable):
    """The agent has no worker that is ready."""

    reason = "AGENT_NOT_READY"


class CircuitOpen(Unavailable):
    """Every worker failed so often in a row that the circuit breaker gives it no calls for some seconds."""

    reason = "CIRCUIT_OPEN"


class QueueFull(ResourceExhausted):
    """So many calls wait for the agent already that one more is refused; it may be repeated later."""

    reason = "QUEUE_FULL"


class TooManyCalls(ResourceExhausted):
    """The caller has as many calls in flight as it may."""

    reason = "TOO_MANY_CALLS"


class RateLimited(ResourceExhausted):
    """The caller makes more calls a second than it may."""

    reason = "RATE_LIMITED"


class MessageTooLarge(ResourceExhausted):
    """The request is larger than a message may be."""

    reason = "MESSAGE_TOO_LARGE"


class GatewayOverloaded(Unavailable):
    """The gateway has no memory for more calls; the call may be repeated later."""

    reason = "GATEWAY_OVERLOADED"


class DiskFull(ResourceExhausted):
    """A disk of the platform's has no room for what must be written down; says which."""

    reason = "DISK_FULL"


class WorkerDraining(Unavailable):
    """The worker takes no more calls, and has not begun this one: it may be repeated, whatever it does."""

    reason = "WORKER_DRAINING"
    begun = False


class WorkerDrained(Unavailable):
    """The worker's grace period was over before the call was; it may have had effects."""

    reason = "WORKER_DRAINED"


class SecretNotSet(FailedPrecondition):
    """An agent needs a secret that is not set for it; says which, and with which command it is set."""

    reason = "SECRET_NOT_SET"


class AgentFailed(FailedPrecondition):
    """The agent's own code failed to import, to start or to become healthy. The message ends with its traceback."""

    reason = "AGENT_FAILED"


class NotEnforceable(FailedPrecondition):
    """A limit or isolation was asked for that this machine cannot enforce."""

    reason = "NOT_ENFORCEABLE"


class ImageNotTrusted(FailedPrecondition):
    """The pool runs only images that a key signed which it trusts, and no such key signed this one."""

    reason = "IMAGE_NOT_TRUSTED"


class InsufficientResources(ResourceExhausted):
    """The ledger refuses a reservation; says what is free."""

    reason = "INSUFFICIENT_RESOURCES"


class InvalidUnit(InvalidArgument):
    """A size, duration, share or rate that cannot be read."""

    reason = "INVALID_UNIT"


class InvalidManifest(InvalidArgument):
    """An `agent.yaml` that does not say what it must."""

    reason = "INVALID_MANIFEST"


class NoConversations(FailedPrecondition):
    """The agent has no `on_message`."""

    reason = "NO_CONVERSATIONS"


class ConversationNotFound(NotFound):
    """The caller has no such conversation with the agent."""

    reason = "CONVERSATION_NOT_FOUND"

    def __init__(self, conversation_id: str) -> None:
        super().__init__(f"conversation '{conversation_id}' not found", metadata={"conversation": conversation_id})


class MessageNotFound(NotFound):
    """The conversation has no such message."""

    reason = "MESSAGE_NOT_FOUND"


class ConversationBusy(Aborted):
    """A message runs in the conversation, and the agent takes no other meanwhile."""

    reason = "CONVERSATION_BUSY"


class ConversationFull(ResourceExhausted):
    """What is to be kept of a conversation is larger than it may be."""

    reason = "CONVERSATION_FULL"


class TooManyMessages(ResourceExhausted):
    """As many messages wait in the conversation as may."""

    reason = "TOO_MANY_MESSAGES"


class EventsExpired(OutOfRange):
    """The next event of a conversation is not kept any more."""

    reason = "EVENTS_EXPIRED"


class LeaseLost(FailedPrecondition):
    """Somebody else may write into the conversation now."""

    reason = "LEASE_LOST"


class StateConflict(Aborted):
    """The conversation's state has another version than expected."""

    reason = "STATE_CONFLICT"


class StoreUnavailable(Unavailable):
    """What keeps the conversations cannot be reached now."""

    reason = "STORE_UNAVAILABLE"


class GenerationBroken(Unavailable):
    """A model's worker, or the way to it, was lost in the middle of a text; it may be generated anew."""

    reason = "GENERATION_BROKEN"


class MessageAmbiguous(Unavailable):
    """A worker ended while it handled the message, and the agent's messages are not to be handled twice."""

    reason = "MESSAGE_AMBIGUOUS"


class MessageSetAside(Unavailable):
    """The message ended too many workers to be handled again."""

    reason = "MESSAGE_SET_ASIDE"
