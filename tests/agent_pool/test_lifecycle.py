"""Every state and event, against the table."""

import itertools

import pytest
from agentruntime import errors

from agent_pool import lifecycle
from agent_pool.lifecycle import Event, State


def test_what_is_not_in_the_table_cannot_happen() -> None:
    for state, event in itertools.product(State, Event):
        if (state, event) in lifecycle.TRANSITIONS:
            assert lifecycle.after(state, event) is lifecycle.TRANSITIONS[state, event]
        else:
            with pytest.raises(errors.Internal):
                lifecycle.after(state, event)


def test_everything_can_be_drained_but_what_already_is() -> None:
    undrainable = {state for state in State if (state, Event.DRAIN) not in lifecycle.TRANSITIONS}
    assert undrainable == {State.DRAINING, State.STOPPED}


def test_a_stopped_worker_stays_stopped() -> None:
    assert not [event for state, event in lifecycle.TRANSITIONS if state is State.STOPPED]


def test_only_an_answer_or_a_recovery_makes_ready() -> None:
    ways = {event for (_, event), to in lifecycle.TRANSITIONS.items() if to is State.READY}
    assert ways == {Event.ANSWER, Event.RECOVER}
