"""Levels, times, and order."""

import itertools

import pytest
from agentruntime import errors
from hypothesis import given, strategies

from agent_pool.logs import lines
from agent_pool.logs.lines import Line


@pytest.mark.parametrize(
    ("text", "level", "time_s"),
    [
        ("bare", "INFO", None),
        ("{not json", "INFO", None),
        ("{}", "INFO", None),
        ('{"level": "warn", "time": "1970-01-01T00:00:02Z"}', "WARNING", 2.0),
        ('{"level": "error", "time": "1970-01-01T00:00:02.5"}', "ERROR", 2.5),
        ('{"level": "critical", "time": 7}', "CRITICAL", None),
        ('{"level": 3, "time": "tomorrow"}', "INFO", None),
    ],
)
def test_parse(text: str, level: str, time_s: float | None) -> None:
    assert lines.parse("a-01", text) == Line("a-01", text, level, time_s)


def test_levels() -> None:
    assert lines.check_level("warn") == "WARNING"
    assert lines.check_level("") == ""
    with pytest.raises(errors.InvalidArgument):
        lines.check_level("loud")
    assert lines.at_least(Line("", "", "ERROR"), "WARNING")
    assert not lines.at_least(Line("", "", "DEBUG"), "INFO")
    assert lines.at_least(Line("", "", "DEBUG"), "")


times = strategies.one_of(strategies.none(), strategies.integers(0, 20).map(float))


@given(strategies.lists(strategies.lists(times, max_size=12), max_size=4))
def test_both_merges(logs: list[list[float | None]]) -> None:
    written = [[Line(str(n), str(m), time_s=time_s) for m, time_s in enumerate(log)] for n, log in enumerate(logs)]
    ahead = list(lines.merged(written, 100.0))
    back = list(lines.merged_backward([reversed(log) for log in written], 100.0))[::-1]
    for found in (ahead, back):
        assert [stamp for stamp, _ in found] == sorted(stamp for stamp, _ in found)
        for n, log in enumerate(written):
            assert [line for _, line in found if line.worker_id == str(n)] == log


@given(strategies.lists(strategies.lists(times, max_size=12).map(lambda log: sorted(filter(None, log))), max_size=4))
def test_logs_in_order_merge_in_order(logs: list[list[float]]) -> None:
    written = [
        [
            each
            for m, time_s in enumerate(log)
            for each in (Line(str(n), str(m), time_s=time_s), Line(str(n), f"{m}b"))
        ]
        for n, log in enumerate(logs)
    ]
    back = [line for _, line in lines.merged_backward([reversed(log) for log in written], 100.0)][::-1]
    for found in ([line for _, line in lines.merged(written, 100.0)], back):
        timed = [line.time_s for line in found if line.time_s is not None]
        assert timed == sorted(timed)
        for line, after in itertools.pairwise(found):
            if line.time_s is not None:  # its bare line stays with it
                assert (after.worker_id, after.text) == (line.worker_id, f"{line.text}b")


def test_lines_without_times_wait_only_so_long() -> None:
    bare = [Line("a", str(n)) for n in range(2500)]
    assert [line for _, line in lines.merged([[*bare, Line("a", "x", time_s=5.0)]], 9.0)][:2500] == bare
    back = lines.merged_backward([[*reversed(bare)]], 9.0)
    assert [line for _, line in back][::-1] == bare


def test_completed() -> None:
    found = lines.completed(Line("a-01", "bare", time_s=None), "a", 0.0)
    time = "1970-01-01T00:00:00Z"
    assert found == {"event": "bare", "level": "info", "time": time, "worker_id": "a-01", "agent": "a"}
    found = lines.completed(lines.parse("a-01", '{"msg": "m", "level": 3, "n": 1}'), "a", 0.0)
    assert found == {
        "event": "m", "msg": "m", "n": 1, "level": "info", "time": time, "worker_id": "a-01", "agent": "a",
    }  # fmt: skip
