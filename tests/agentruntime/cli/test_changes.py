"""The verbs that change an agent: what they send and print, and how they show what goes on."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from agentruntime import errors
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_pb2
from agentruntime.cli import deployment, output

from tests.agentruntime.cli.conftest import Agent
from tests.agentruntime.platform_services import Record

UPDATING = "updating to revision 2 (1 of 2 workers)\n"


@pytest.fixture
def note_shown(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes go on until a note of them was shown."""
    note = output.note

    def noted(text: str) -> None:
        note(text)
        record.shown.set()

    monkeypatch.setattr(output, "note", noted)
    record.shown.clear()


def test_restart(agent: Agent, record: Record) -> None:
    assert agent("restart", "my-agent", "--grace", "2s").out == "restarted my-agent: my-agent-02\n"
    assert record.requests[0].grace_period.ToMilliseconds() == 2000
    assert json.loads(agent("restart", "my-agent-01", "-o", "json").out) == {"worker_ids": ["my-agent-02"]}
    assert not record.requests[-1].HasField("grace_period")
    assert agent("restart", "my-agent", "--grace", "2h").status == 13


@pytest.mark.usefixtures("note_shown")
def test_update_says_what_goes_on_and_what_is(agent: Agent, record: Record) -> None:
    result = agent("update", "my-agent", "--image", "my-agent:1.1.0", "--grace", "5s")
    assert result.err == UPDATING
    assert result.out == "my-agent runs my-agent:1.1.0 at revision 2: my-agent-01\n"
    assert record.requests[-1].grace_period.seconds == 5
    result = agent("update", "my-agent", "--memory", "1GB", "-o", "json")
    data = json.loads(result.out)
    assert (data["revision"], "descriptors" in data, result.err) == (2, False, "")


def test_an_update_that_was_rolled_back(agent: Agent, record: Record) -> None:
    why = "rolled back to revision 1: my-agent-02 did not become healthy\nTraceback:\nValueError: no"
    record.raises["UpdateAgent"] = errors.FailedPrecondition(why, reason="ROLLED_BACK")
    result = agent("update", "my-agent", "--image", "my-agent:1.1.0")
    assert (result.status, result.out) == (19, "")
    assert result.err.startswith("error: rolled back to revision 1: my-agent-02 did not become healthy\nTraceback:")


def test_a_pool_that_died_meanwhile(agent: Agent, record: Record) -> None:
    record.raises["RestartAgent"] = errors.Unavailable("upstream … disconnect/reset before headers")
    result = agent("restart", "my-agent")
    assert (result.status, result.err.count("\n")) == (24, 1)
    assert result.err.endswith("; `agent ps --agents` shows what became of it\n")
    assert sum(isinstance(request, pool_pb2.RestartAgentRequest) for request in record.requests) == 1


def test_rollback(agent: Agent, record: Record) -> None:
    assert agent("rollback", "my-agent").out == "my-agent runs my-agent:0.9 at revision 2: my-agent-01\n"
    assert not record.requests[-1].HasField("revision")
    assert agent("rollback", "my-agent", "--to", "1", "--grace", "1m").status == 0
    assert (record.requests[-1].revision, record.requests[-1].grace_period.seconds) == (1, 60)
    assert agent("rollback", "my-agent", "--to", "0").status == 2


def test_history(agent: Agent) -> None:
    header, failed, current = agent("history", "my-agent").out.splitlines()
    assert header.split()[:3] == ["REVISION", "IMAGE", "CREATED"]
    assert failed.split()[:2] == ["2", "my-agent:1.1.0"]
    assert failed.endswith("it did not start")
    assert current.split() == ["1", "my-agent:1.0.0", "2023-11-14", "22:13:20", "run", "0.5", "64MB", "2", "current"]
    assert json.loads(agent("history", "my-agent", "-o", "json").out)[1]["current"] is True


@pytest.mark.usefixtures("note_shown")
def test_scale(agent: Agent, record: Record) -> None:
    result = agent("scale", "my-agent", "--replicas", "0", "--no-auto-scale")
    assert (result.status, result.err) == (0, UPDATING)
    request = record.requests[-1]
    assert (request.HasField("replicas"), request.replicas, request.HasField("resources")) == (True, 0, False)


def test_run_of_another_image_says_how_and_does_it_with_update(agent: Agent, record: Record) -> None:
    sentence = "agent 'my-agent' runs another image; `agent update my-agent --image my-agent:2` changes it"
    record.raises["RunAgent"] = errors.OtherRevision(sentence)
    result = agent("run", "my-agent:2")
    assert (result.status, result.err) == (19, f"error: {sentence}\n")
    record.raises.clear()
    record.requests.clear()
    assert agent("run", "my-agent:2", "--update", "--cpu", "1").status == 0
    asked, updated, ran = record.requests
    assert asked == pool_pb2.GetDeploymentRequest(agent="my-agent")
    assert (updated.name, updated.image, updated.settings) == ("my-agent", "my-agent:2", ran.settings)
    record.requests.clear()
    record.raises["GetDeployment"] = errors.AgentNotFound("my-agent")
    assert agent("run", "my-agent:2", "--update").status == 0
    assert [type(request).__name__ for request in record.requests] == ["GetDeploymentRequest", "RunAgentRequest"]


def ready(worker_id: str, revision: int) -> pool_pb2.Worker:
    return pool_pb2.Worker(worker_id=worker_id, revision=revision, image="a:2", state=pool_pb2.WORKER_STATE_READY)


@pytest.mark.parametrize(
    ("of", "says"),
    [
        (pool_pb2.Deployment(stopped=True), "a is stopped and has a:1; `agent run a:1` starts it"),
        (pool_pb2.Deployment(asleep=True, replicas=2), "a sleeps and has a:1; the next call wakes it"),
        (pool_pb2.Deployment(replicas=2), "a runs a:1: no worker is ready"),
        (
            pool_pb2.Deployment(revision=2, workers=[ready("a-01", 2), ready("a-02", 3), ready("a-03", 2)]),
            "a runs a:1 at revision 2: a-01, a-03; a-02 tries a:2 at revision 3",
        ),
    ],
)
def test_an_agent_in_a_sentence(of: pool_pb2.Deployment, says: str) -> None:
    of.agent, of.image = "a", "a:1"
    assert deployment.sentence_of(of) == says


def test_ctrl_c_says_that_it_goes_on(endpoint: str, record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UAPI_ENDPOINT", endpoint)
    record.holds.clear()
    argv = [str(Path(sys.executable).with_name("agent")), "run", "my-agent:1"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        record.wait_for(lambda seen: bool(seen.requests))
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=20)
    record.holds.set()
    assert (running.returncode, out) == (130, "")
    assert err == "the start goes on; `agent ps --agent my-agent` shows it, `agent stop my-agent` ends it\n"


def test_on_a_terminal_one_line_is_redrawn(endpoint: str, record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UAPI_ENDPOINT", endpoint)
    monkeypatch.setenv("TERM", "xterm")
    controller, terminal = pty.openpty()
    argv = [str(Path(sys.executable).with_name("agent")), "scale", "my-agent", "--replicas", "2"]
    record.shown.clear()
    shown = ""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=terminal, text=True) as running:
        os.close(terminal)
        while UPDATING.strip() not in shown:
            shown += os.read(controller, 65536).decode()
        record.shown.set()
        out, _ = running.communicate(timeout=30)
    shown += os.read(controller, 65536).decode()
    os.close(controller)
    assert out.startswith("my-agent runs my-agent:1.0 at revision 2")
    # The line is taken away again at the end.
    assert shown.rstrip().endswith("\x1b[2K")
