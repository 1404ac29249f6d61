"""The ledger never promises more than there is."""

import contextlib

import pytest
from agentruntime import errors
from hypothesis import given
from hypothesis import strategies as st

from agent_pool.ledger import Capacity, Ledger, Reservation
from agent_pool.resources import MB, Resources

SMALL = Resources(cpu_millis=100, memory_bytes=100)


def test_all_or_nothing() -> None:
    ledger = Ledger(Capacity(250, 10_000))
    with pytest.raises(errors.InsufficientResources) as refused:
        ledger.reserve(["a", "b", "c"], SMALL)
    assert refused.value.message == (
        "3 workers will not fit: 0.3 CPU asked, 0.25 CPU free; stop an agent or ask for less"
    )
    assert refused.value.metadata == {"cpu_free": "250", "memory_free": "10000", "gpu_free": "0"}
    assert ledger.reserved() == Capacity(0, 0)
    assert set(ledger.reserve(["a", "b"], SMALL)) == {"a", "b"}


def test_the_same_holder_reserves_once() -> None:
    ledger = Ledger(Capacity(1000, 1000))
    ledger.reserve(["a"], SMALL)
    assert ledger.reserve(["a"], SMALL) == {}
    assert ledger.reserved().cpu_millis == 100
    ledger.release("a")
    ledger.release("a")
    assert ledger.reserved() == Capacity(0, 0)


def test_gpus_are_leased_one_by_one() -> None:
    ledger = Ledger(Capacity(1000, 1000, gpus=(0, 1, 2)))
    one = Resources(cpu_millis=10, memory_bytes=10, gpus=1)
    assert [ledger.reserve([name], one)[name].gpus for name in "ab"] == [(0,), (1,)]
    ledger.release("a")
    assert ledger.reserve(["c", "d"], one)["d"].gpus == (2,)
    with pytest.raises(errors.InsufficientResources, match="1 GPU asked, 0 GPUs free"):
        ledger.reserve(["e"], one)


@pytest.mark.parametrize(
    ("have", "says"),
    [
        ((), "this machine has 0 GPUs, 1 requested"),
    ],
)
def test_gpus_that_are_not_there(have: tuple[int, ...], says: str) -> None:
    with pytest.raises(errors.FailedPrecondition) as refused:
        Ledger(Capacity(1000, 1000, have)).reserve(["a"], Resources(gpus=1))
    assert refused.value.message == says


def test_adopted_workers_count_even_beyond_the_capacity() -> None:
    ledger = Ledger(Capacity(50, 1000))
    ledger.adopt("a", Reservation(100, 100))
    with pytest.raises(errors.InsufficientResources, match="0 CPU free"):
        ledger.reserve(["b"], SMALL)


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.booleans(), st.integers(1, 60), st.integers(1, 60), st.integers(0, 2))
    )
)
def test_never_more_than_there_is(steps: list[tuple[str, bool, int, int, int]]) -> None:
    ledger = Ledger(Capacity(100, 100, (0, 1)))
    for holder, release, cpu, memory, gpus in steps:
        if release:
            ledger.release(holder)
            continue
        with contextlib.suppress(errors.InsufficientResources):
            ledger.reserve([holder], Resources(cpu_millis=cpu, memory_bytes=memory, gpus=gpus))
        reserved = ledger.reserved()
        assert reserved.cpu_millis <= 100
        assert reserved.memory_bytes <= 100
        assert len(set(reserved.gpus)) == len(reserved.gpus) <= 2


def test_room_is_what_would_still_fit() -> None:
    ledger = Ledger(Capacity(250, 10_000, (0, 1)))
    assert ledger.room(SMALL) == 2
    ledger.reserve(["a"], SMALL)
    assert ledger.room(SMALL) == 1
    assert ledger.room(Resources(cpu_millis=10, memory_bytes=5_000)) == 1
    assert ledger.room(Resources(cpu_millis=10, memory_bytes=100, gpus=2)) == 1
    ledger.adopt("b", Reservation(10_000, 100))
    assert ledger.room(SMALL) == 0


def test_what_holders_have_changes_for_all_or_for_none() -> None:
    ledger = Ledger(Capacity(1000, 1000 * MB, gpus=(0, 1)))
    ledger.reserve(["a", "b"], Resources(cpu_millis=200, memory_bytes=200 * MB, gpus=1))
    ledger.reserve(["other"], Resources(cpu_millis=100, memory_bytes=100 * MB))
    ledger.change(["a", "b", "nobody"], Resources(cpu_millis=450, memory_bytes=100 * MB))
    assert ledger.reserved() == Capacity(1000, 300 * MB, (0, 1))
    before = ledger.holding("a")
    with pytest.raises(errors.InsufficientResources, match="2 workers will not fit: 1 CPU asked"):
        ledger.change(["a", "b"], Resources(cpu_millis=500, memory_bytes=1 * MB))
    assert ledger.holding("a") == before
    assert ledger.holding("nobody") is None


def test_what_would_fit_without_some() -> None:
    ledger = Ledger(Capacity(1000, 1000 * MB))
    ledger.reserve(["a", "b"], Resources(cpu_millis=400, memory_bytes=1 * MB))
    more = Resources(cpu_millis=500, memory_bytes=1 * MB)
    ledger.check(2, more, besides=["a", "b"])
    with pytest.raises(errors.InsufficientResources):
        ledger.check(2, more, besides=["a"])
