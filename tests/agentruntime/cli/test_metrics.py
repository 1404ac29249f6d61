"""`agent metrics`: a sheet for one worker, a row for each of more, and obvious mistakes."""

import json

import pytest
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_pb2
from agentruntime._proto.uapi.v1 import agent_registry_pb2 as registry_pb2

from tests.agentruntime.cli.conftest import Agent
from tests.agentruntime.cli.figures_samples import MB, busy_agent, busy_worker
from tests.agentruntime.platform_services import Record


def test_a_worker_has_a_sheet(agent: Agent, record: Record) -> None:
    record.deployments = [busy_agent(busy_worker(1, gpus=2), busy_worker(2))]
    out = agent("metrics", "busy-01").out.splitlines()
    assert out[0].startswith("busy-01  READY, up ")
    assert out[1:] == [
        "CPU       50% of a core, at most 200%; 12.50s in all, throttled for 0.25s in 3 periods",
        "memory    128MB of 512MB (25%); peak 200MB, its own share 64MB",
        "pids      7 of 256",
        "received  1.5kB/s; 5MB in all",
        "sent      20B/s; 2MB in all",
        "GPU 0     30%, 1GB of its memory",
        "GPU 1     31%, 1GB of its memory",
        "lag       4ms",
        "calls     4 in flight, at all workers of busy",
    ]
    # Only who asks for shares makes the pool read them.
    assert [each.memory_share for each in record.requests if isinstance(each, pool_pb2.ListWorkersRequest)] == [True]


def test_a_worker_with_the_hosts_network(agent: Agent, record: Record) -> None:
    record.deployments = [busy_agent(busy_worker(1, network=False))]
    assert "network   not its own: it has the host's" in agent("metrics", "busy").out


def test_an_agent_has_a_row_for_each_worker_and_their_sum(agent: Agent, record: Record) -> None:
    looping = pool_pb2.Worker(worker_id="busy-03", state=pool_pb2.WORKER_STATE_FAILED, crash_loop=True, restarts=9)
    record.deployments = [busy_agent(busy_worker(1, gpus=1), busy_worker(2), looping)]
    running, holding = agent("metrics", "busy").out.split("\n\n")
    header, first, _, third, sums = running.splitlines()
    assert header.split()[:6] == ["WORKER", "STATE", "CPU", "CPU", "TIME", "THROTTLED"]
    assert first.split()[:8] == ["busy-01", "READY", "50%", "12.50s", "0.25s", "7", "of", "256"]
    assert third.split() == ["busy-03", "CRASH", "LOOP", *["-"] * 4, "9", "-", "-"]
    assert sums.split() == ["total", "100%", "25.00s", "0.50s", "14", "of", "512"]
    _, first, _, sums, calls = holding.splitlines()
    assert " ".join(first.split()) == "busy-01 128MB of 512MB 200MB 64MB 1.5kB/s 20B/s 30% 1GB"
    assert sums.split()[:4] == ["total", "256MB", "of", "1.02GB"]
    assert calls == "4 calls in flight"


@pytest.mark.parametrize("flags", [["--json"], ["--output", "json"]])
def test_json_has_units_in_its_names(agent: Agent, record: Record, flags: list[str]) -> None:
    record.deployments = [busy_agent(busy_worker(1, gpus=1), busy_worker(2, network=False))]
    data = json.loads(agent("metrics", "busy", *flags).out)
    assert (data["agent"], data["state"], data["calls_in_flight"]) == ("busy", "RUNNING", 4)
    first, second = data["workers"]
    assert "use" not in first
    assert first["cpu_percent"] == 50.0
    assert first["memory_limit_bytes"] == 512 * MB
    assert first["network_received_bytes_per_second"] == 1500.0
    assert first["gpus"] == [{"index": 0, "utilization_percent": 30.0, "memory_bytes": 10**9}]
    assert (second["network_received_bytes"], second["restarts"], second["lag_seconds"]) == (None, 2, 0.004)
    assert (data["total"]["cpu_percent"], data["total"]["pids"]) == (100.0, 14)


def test_agents_without_a_worker_say_why(agent: Agent, record: Record) -> None:
    record.deployments = [
        pool_pb2.Deployment(agent="tired", asleep=True),
        pool_pb2.Deployment(agent="halted", stopped=True),
    ]
    assert agent("metrics", "tired").out == "tired sleeps and has no process; the next call wakes it\n"
    assert agent("metrics", "halted").out == "halted is stopped and has no process; `agent run` starts it\n"
    data = json.loads(agent("metrics", "tired", "--json").out)
    assert (data["state"], data["workers"]) == ("ASLEEP", [])


@pytest.mark.parametrize(
    ("line", "status", "says"),
    [
        ("metrics nobody", 15, "there is no agent or worker 'nobody'; `agent ps` lists them"),
        ("monitor busy-07", 15, "agent 'busy' has no worker 'busy-07'; it has busy-01"),
        (
            "metrics tired-01",
            15,
            "agent 'tired' has no worker 'tired-01'; tired sleeps and has no process; the next call",
        ),
        (
            "monitor guest",
            19,
            "agent 'guest' is registered from outside; only workers of this platform can be measured",
        ),
    ],
)
def test_names_that_cannot_be_measured(agent: Agent, record: Record, line: str, status: int, says: str) -> None:
    record.deployments = [busy_agent(busy_worker(1)), pool_pb2.Deployment(agent="tired", asleep=True)]
    outside = registry_pb2.AgentInfo(agent_id="guest", source=registry_pb2.AGENT_SOURCE_REGISTERED)
    record.outside = [outside]
    result = agent(*line.split())
    assert (result.status, result.out, result.err.count("\n")) == (status, "", 1)
    assert says in result.err
