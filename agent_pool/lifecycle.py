"""A worker's life: its states, what can happen to it, and the one table that joins them."""

from enum import StrEnum

from agentruntime import errors


class State(StrEnum):
    """As in the proto's WorkerState."""

    PENDING = "pending"
    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class Event(StrEnum):
    """What can happen to a worker."""

    LAUNCH = "launch"  # its process is being made
    ANSWER = "answer"  # its first health check succeeded
    SICKEN = "sicken"  # too many health checks in a row failed
    RECOVER = "recover"  # a health check succeeded again
    DRAIN = "drain"  # an operator wants it gone
    END = "end"  # it is gone, as asked, or as its restart policy lets it be
    FAIL = "fail"  # it is gone, or never became ready, against what was asked
    RETRY = "retry"  # it is wanted again after a failure


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.PENDING, Event.LAUNCH): State.STARTING,
    (State.PENDING, Event.DRAIN): State.DRAINING,
    (State.PENDING, Event.FAIL): State.FAILED,
    (State.STARTING, Event.ANSWER): State.READY,
    (State.STARTING, Event.DRAIN): State.DRAINING,
    (State.STARTING, Event.FAIL): State.FAILED,
    (State.READY, Event.SICKEN): State.UNHEALTHY,
    (State.READY, Event.DRAIN): State.DRAINING,
    (State.READY, Event.FAIL): State.FAILED,
    (State.READY, Event.END): State.STOPPED,
    (State.UNHEALTHY, Event.RECOVER): State.READY,
    (State.UNHEALTHY, Event.DRAIN): State.DRAINING,
    (State.UNHEALTHY, Event.FAIL): State.FAILED,
    (State.UNHEALTHY, Event.END): State.STOPPED,
    (State.DRAINING, Event.END): State.STOPPED,
    (State.FAILED, Event.RETRY): State.PENDING,
    (State.FAILED, Event.DRAIN): State.DRAINING,
}

# The states in which a worker takes calls, or soon will again.
LIVING = frozenset({State.PENDING, State.STARTING, State.READY, State.UNHEALTHY})


def after(state: State, event: Event) -> State:
    """The state that `event` leads to.

    Raises:
        Internal: the event cannot happen in this state.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise errors.Internal(f"a {state} worker cannot {event}") from None
