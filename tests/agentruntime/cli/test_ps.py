"""`agent ps`: workers, and agents without any."""

import json
import re
import time

import pytest
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_pb2
from agentruntime._proto.uapi.v1 import agent_registry_pb2 as registry_pb2

from tests.agentruntime.cli.conftest import Agent
from tests.agentruntime.platform_services import Record, worker


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()[1:]]


@pytest.fixture
def every_kind(record: Record) -> Record:
    """An agent of each kind there is."""
    looping = worker()
    looping.MergeFrom(
        pool_pb2.Worker(
            worker_id="bad-01",
            agent="bad",
            state=pool_pb2.WORKER_STATE_FAILED,
            crash_loop=True,
            reason="exit status 1",
            last_traceback="Traceback:\nValueError: no",
        )
    )
    looping.pid = 0
    looping.retry_at.FromSeconds(int(time.time()) + 95)
    scaling = pool_pb2.Scaling(auto_scale=True, min_replicas=0, max_replicas=10)
    record.deployments += [
        pool_pb2.Deployment(agent="tired", image="tired:2", revision=3, asleep=True, replicas=2),
        pool_pb2.Deployment(agent="halted", image="halted:1", revision=1, stopped=True, status="stopped by you"),
        pool_pb2.Deployment(
            agent="bad",
            image="bad:1",
            revision=2,
            replicas=1,
            workers=[looping],
            status="rolled back to revision 1: bad-01 failed",
            settings=pool_pb2.AgentSettings(scaling=scaling),
        ),
    ]
    record.outside = [
        registry_pb2.AgentInfo(
            agent_id="guest",
            source=registry_pb2.AGENT_SOURCE_REGISTERED,
            state=registry_pb2.AGENT_STATE_UNAVAILABLE,
            endpoints=[registry_pb2.AgentEndpoint(address="localhost:6000")],
            reason="it does not answer",
        ),
        registry_pb2.AgentInfo(agent_id="my-agent", source=registry_pb2.AGENT_SOURCE_POOL),
    ]
    return record


def test_agents_without_workers_have_a_line_each(agent: Agent, every_kind: Record) -> None:
    out = agent("ps").out
    assert [row[0] for row in rows(out)] == ["bad-01", "bad", "halted", "my-agent-01", "tired", "guest"]
    by_name = {row[0]: row for row in rows(out)}
    assert by_name["tired"] == ["tired", "ASLEEP", "3", "-", "-", "-", "-", "-"]
    assert by_name["halted"] == ["halted", "STOPPED", "1", "-", "-", "-", "-", "-", "stopped", "by", "you"]
    assert " ".join(by_name["bad"]) == "bad rolled back to revision 1: bad-01 failed"
    assert " ".join(by_name["guest"]).endswith(
        "UNAVAILABLE - - - - - - registered at localhost:6000; it does not answer"
    )


def test_a_crash_loop_is_named(agent: Agent, every_kind: Record) -> None:
    out = agent("ps", "--agent", "bad").out
    assert re.search(r"CRASH LOOP, next try in 1m [\ds ]+: exit status 1$", out, re.MULTILINE)
    assert "halted" not in out


def test_json_is_a_list_of_workers(agent: Agent, every_kind: Record) -> None:
    workers = json.loads(agent("ps", "-o", "json").out)
    assert [each["worker_id"] for each in workers] == ["my-agent-01", "bad-01"]
    assert workers[1]["crash_loop"] is True
    assert workers[1]["last_traceback"] == "Traceback:\nValueError: no"
    assert workers[1]["retry_at"].endswith("Z")


def test_agents_as_a_table(agent: Agent, every_kind: Record) -> None:
    by_name = {row[0]: row[1:] for row in rows(agent("ps", "--agents").out)}
    assert by_name["bad"][:9] == ["RUNNING", "bad:1", "2", "0", "of", "1", "0", "to", "10"]
    assert by_name["tired"] == ["ASLEEP", "tired:2", "3", "0", "of", "2", "-"]
    assert by_name["guest"][0] == "UNAVAILABLE"


def test_agents_as_json(agent: Agent, every_kind: Record) -> None:
    agents = {each["agent"]: each for each in json.loads(agent("ps", "--agents", "-o", "json").out)}
    assert {name: each["state"] for name, each in agents.items()} == {
        "my-agent": "RUNNING",
        "tired": "ASLEEP",
        "halted": "STOPPED",
        "bad": "RUNNING",
        "guest": "UNAVAILABLE",
    }
    assert agents["bad"]["workers"][0]["worker_id"] == "bad-01"
    assert agents["bad"]["settings"]["scaling"]["max_replicas"] == 10
    assert agents["guest"]["source"] == "AGENT_SOURCE_REGISTERED"
    assert (agents["guest"]["status"], agents["guest"]["workers"]) == ("it does not answer", [])
    assert not any("descriptors" in each for each in agents.values())
