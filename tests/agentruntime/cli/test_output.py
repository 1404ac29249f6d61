"""What commands print."""

import json

import pytest
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_pb2
from agentruntime.cli import output

from tests.agentruntime.platform_services import worker


def test_messages_as_data() -> None:
    data = output.as_data(worker())
    assert data["worker_id"] == "my-agent-01"
    assert data["state"] == "WORKER_STATE_READY"
    assert data["usage"]["memory_bytes"] == 5_000_000_000
    assert data["reason"] == ""
    assert data["started_at"] == "2023-11-14T22:13:20Z"
    assert json.loads(json.dumps(data)) == data


def test_nested_and_repeated_numbers() -> None:
    deployment = pool_pb2.Deployment(agent="a", workers=[worker(), worker()])
    data = output.as_data(deployment)
    assert [item["usage"]["memory_bytes"] for item in data["workers"]] == [5_000_000_000] * 2


def test_a_table_keeps_whole_cells_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["A", "B"], [["x" * 100, "[red]" + "y" * 100]])
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["A", "B"]
    assert row.split() == ["x" * 100, "[red]" + "y" * 100]


def test_progress_is_silent_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress("working"):
        pass
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
