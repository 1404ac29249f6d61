"""What is known of the load, and that idleness is only counted while somebody reports."""

from agent_pool.scaling.load import STALE_S, AgentLoad, LoadBook


def load(agent: str = "a", in_flight: int = 0, begun: int = 0, queued: int = 0) -> AgentLoad:
    return AgentLoad(agent, in_flight, begun, queued)


def test_the_last_report_counts_and_ages() -> None:
    book = LoadBook()
    assert not book.fresh(0.0)
    book.report([load(in_flight=3, queued=2), load("b", in_flight=1)], 10.0)
    assert book.calls("a", 10.0) == 5
    assert book.calls("nobody", 10.0) == 0
    book.report([load("b", in_flight=1)], 10.5)
    assert book.calls("a", 10.5) == 0
    assert book.calls("b", 10.5 + STALE_S) == 1
    assert book.calls("b", 10.6 + STALE_S) == 0
    assert not book.fresh(10.6 + STALE_S)


def test_idle_time_runs_while_reports_come() -> None:
    book = LoadBook()
    for tick in range(11):
        book.report([], 100.0 + tick / 2)
    assert book.idle_s("a") == 5.0
    # A gateway that was away for an hour says nothing about that hour.
    book.report([], 3700.0)
    assert book.idle_s("a") == 5.0
    book.report([], 3700.5)
    assert book.idle_s("a") == 5.5
    # Nobody reports, nothing runs.
    assert book.idle_s("a") == 5.5


def test_calls_that_come_and_go_between_two_reports_count() -> None:
    book = LoadBook()
    for tick in range(5):
        book.report([load(begun=1), load("b", queued=1), load("c", in_flight=1)] if tick == 2 else [], float(tick))
    assert [book.idle_s(agent) for agent in "abcd"] == [2.0, 2.0, 2.0, 4.0]


def test_a_start_counts_as_a_call() -> None:
    book = LoadBook()
    for tick in range(5):
        book.report([], float(tick))
    book.touch("a")
    assert book.idle_s("a") == 0.0
