"""Levels, times, and order."""

import json

import pytest
from agentruntime import errors

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


def test_merged_keeps_each_log_in_order() -> None:
    def log(name: str, *times: float | None) -> list[Line]:
        return [Line(name, json.dumps(n), time_s=time_s) for n, time_s in enumerate(times)]

    merged = list(lines.merged([log("a", 1, None, 5, 4), log("b", 2, 3, None)]))
    assert [(line.worker_id, line.text) for line in merged] == [
        ("a", "0"), ("a", "1"), ("b", "0"), ("b", "1"), ("b", "2"), ("a", "2"), ("a", "3"),
    ]  # fmt: skip
