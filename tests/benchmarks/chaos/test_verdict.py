"""The verdict of `make chaos` finds what it is there to find."""

from pathlib import Path

import pytest

from benchmarks.chaos.outcome import OK, PLAIN, SDK, Call, Kill, Outcome, Phase, Stream
from benchmarks.chaos.readiness import longest_without
from benchmarks.chaos.verdict import Evidence, bars, executions, what_clients_saw

WORKER = Kill("worker", 102, at=10.0, gone_at=10.01, back_at=10.2)
ENVOY = Kill("envoy", 9, at=20.0, gone_at=20.01, back_at=20.2)


def call(
    client: str, began_at: float, code: str = "UNAVAILABLE", reason: str = "", *, idempotent: bool = False
) -> Call:
    return Call(client, idempotent, "id", began_at, began_at + 0.05, code, reason)


def missed(
    *calls: Call, ran: dict[str, list[int]] | None = None, kills: tuple[Kill, ...] = (WORKER, ENVOY)
) -> list[str]:
    seen = Evidence(Outcome(list(calls), [], 50), [], list(kills), ran or {}, [], lost_workers=0)
    return [row.what for row in bars(seen).rows if row.missed]


def test_nothing_failed() -> None:
    answered = call(PLAIN, 9.99, OK)
    assert missed(answered, ran={"id": [102]}) == []
    assert missed(answered) == ["not idempotent: answered, but not written down"]


def test_idempotent_calls() -> None:
    assert missed(call(PLAIN, 9.99, idempotent=True)) == [
        "idempotent, plain client: failed, not through the killed Envoy"
    ]
    assert missed(call(PLAIN, 19.99, idempotent=True)) == []
    assert missed(call(PLAIN, 21.4, idempotent=True)) == []
    assert len(missed(call(PLAIN, 21.6, idempotent=True))) == 1
    assert missed(call(SDK, 19.99, idempotent=True)) == ["idempotent, SDK: failed"]


@pytest.mark.parametrize(
    ("began_at", "ran", "excused"),
    [
        (9.99, [], True),
        (9.99, [102], True),
        (9.99, [101], False),
        (10.02, [], False),
        (9.9, [], False),
        (19.99, [101], True),
        (22.0, [], False),
    ],
)
def test_calls_that_may_be_cut(began_at: float, ran: list[int], excused: bool) -> None:
    expected = [] if excused else ["not idempotent: failed, neither on a killed worker nor through the killed Envoy"]
    assert missed(call(PLAIN, began_at), ran={"id": ran} if ran else None) == expected


@pytest.mark.parametrize(("ran", "figure"), [({}, 1), ({"id": [102]}, 0)])
def test_calls_that_ran_nowhere_are_excused_and_counted(ran: dict[str, list[int]], figure: int) -> None:
    seen = Evidence(Outcome([call(PLAIN, 9.99)], [], 50), [], [WORKER], ran, [], lost_workers=0)
    [row] = [row for row in bars(seen).rows if row.bar is None]
    assert (row.what.endswith("ran nowhere"), row.figure) == (True, figure)


def test_how_they_are_cut() -> None:
    assert missed(call(SDK, 9.99, reason="WORKER_LOST")) == []
    assert missed(call(SDK, 9.99)) == ["not idempotent, SDK: failed without a reason"]
    assert missed(call(SDK, 9.99, reason="UNAVAILABLE")) == ["not idempotent, SDK: failed without a reason"]
    assert missed(call(PLAIN, 9.99, "INTERNAL")) == ["not idempotent: failed, not as UNAVAILABLE"]


def test_streams_of_drained_workers() -> None:
    cuts = [
        Stream(PLAIN, 31.0, "UNAVAILABLE"),
        Stream(SDK, 31.0, "UNAVAILABLE", "WORKER_DRAINED"),
        Stream(PLAIN, 31.0, "INTERNAL"),
        Stream(SDK, 31.0, "UNAVAILABLE", "WORKER_LOST"),
        Stream(PLAIN, 9.0, "INTERNAL"),
    ]
    phases = [Phase("workers", 8.0, 10.0), Phase("update", 30.0, 32.0)]
    seen = Evidence(Outcome([], cuts, 50), phases, [], {}, [], lost_workers=0)
    [row] = [row for row in bars(seen).rows if row.missed]
    assert (row.what.partition(",")[0], row.figure) == ("streams of drained workers", 2)


def test_run_twice_and_not_back() -> None:
    assert missed(ran={"id": [101, 102]}) == ["not idempotent: ran twice"]
    assert missed(kills=(Kill("pool", 8, 1.0, 1.1),)) == ["killed, and not back"]


def test_executions_are_read_with_the_parts_that_were_rotated_away(tmp_path: Path) -> None:
    (tmp_path / "ledger-01.log.1").write_text("ran a 101\n{}\n")
    (tmp_path / "ledger-01.log").write_text("ran b 101\n  ran c 101\nran d\n")
    (tmp_path / "ledger-02.log").write_text("ran a 102\n")
    assert executions(tmp_path) == {"a": [101, 102], "b": [101]}


def test_longest_without() -> None:
    changes = [(0.0, 4), (1.0, 0), (1.5, 1), (2.0, 0)]
    assert longest_without(changes, 0.0, 3.0) == 1.0
    assert longest_without(changes, 0.0, 2.1) == 0.5
    assert longest_without(changes, 1.2, 1.4) == pytest.approx(0.2)


def test_a_phase_in_words() -> None:
    cuts = [Stream(PLAIN, 10.0, "INTERNAL"), Stream(SDK, 10.1, "UNAVAILABLE", "WORKER_LOST")]
    seen = Evidence(
        Outcome([call(SDK, 9.99, reason="WORKER_LOST"), call(PLAIN, 9.5, OK)], cuts, 50),
        [Phase("workers", 9.0, 11.0)],
        [WORKER],
        {"id": [102]},
        [(0.0, 4)],
        lost_workers=0,
    )
    [row] = what_clients_saw(seen).rows
    assert row == [
        "workers", "2.0", "1 worker", "2", "1 not idempotent sdk: UNAVAILABLE/WORKER_LOST", "50 ms", "0 ms",
        "worker 200 ms", "1 plain: INTERNAL, 1 sdk: UNAVAILABLE/WORKER_LOST",
    ]  # fmt: skip
