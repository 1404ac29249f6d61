"""`agent up` and `agent down` with the real gateway and pool: started twice, killed, in each other's way."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import psutil
import pytest
from agentruntime import Client, errors, processes, supervisor
from agentruntime._proto.uapi.v1 import agent_registry_pb2 as registry_pb2
from agentruntime.home import Home

from tests.agentruntime.cli.conftest import Agent, Result
from tests.agentruntime.platform_services import Record, serving
from tests.waiting import until

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[3]
FREE_PORTS = ("--grpc-port", "0", "--http-port", "0")


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, agent_process: Agent) -> Iterator[Home]:
    """A runtime directory whose platform is gone afterwards, whatever the test did."""
    with tempfile.TemporaryDirectory(prefix="uapi-cli-") as folder:
        monkeypatch.setenv("UAPI_HOME", folder)
        home = Home(Path(folder))
        yield home
        agent_process("down")
        assert processes_of(home) == []


def processes_of(home: Home) -> list[psutil.Process]:
    """Every process that was started for this runtime directory."""
    found = []
    for process in psutil.process_iter():
        try:
            # Forked workers keep the command line of the process that they were forked from, and its environment.
            if process.environ().get("UAPI_HOME") == str(home.root) or str(home.root) in " ".join(process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def pids(agent: Agent) -> dict[str, int]:
    result = agent("status", "-o", "json")
    processes = json.loads(result.out)["processes"] if result.status == 0 else []
    return {process["name"]: process["pid"] for process in processes}


def await_another(agent: Agent, part: str, pid: int) -> None:
    """Until another process than `pid` is that part of the platform."""
    until(lambda: pids(agent).get(part) not in (None, pid))


def ok(result: Result) -> Result:
    assert result.status == 0, result.err
    return result


def test_up_and_down_twice(home: Home, agent_process: Agent) -> None:
    first = json.loads(ok(agent_process("up", *FREE_PORTS, "--anonymous", "none", "-o", "json")).out)
    by_name = {process["name"]: process for process in first["processes"]}
    assert {"gateway", "envoy", "pool", "supervisor"} <= by_name.keys()
    assert all(process["pid"] > 0 and process["version"] for process in by_name.values())
    assert all(0 <= process["uptime_seconds"] < 60 for process in by_name.values())
    # It is in a session of its own, so the end of a terminal does not reach it.
    assert os.getsid(by_name["supervisor"]["pid"]) == by_name["supervisor"]["pid"]
    second = ok(agent_process("up", "--grpc-port", "1"))
    assert second.err.startswith("the platform runs already")
    for flags, why in (
        (
            ("--tls", "--require-client-cert"),
            "without TLS; end it with `agent down`, then start it with `agent up --tls",
        ),
        (("--ca", "/ca.pem"), "not with /ca.pem"),
        (("--require-client-cert",), "lets callers in without a certificate"),
        (("--anonymous", "call"), "not with --anonymous call"),
    ):
        refused = agent_process("up", *flags)
        assert refused.status == 19
        assert f"the platform runs already, and {why}" in refused.err
    assert pids(agent_process) == {name: process["pid"] for name, process in by_name.items()}
    assert ok(agent_process("down")).out == "the platform has stopped\n"
    assert processes_of(home) == []
    assert ok(agent_process("down")).out == "no platform runs on this machine\n"
    assert agent_process("ps").status == 24


def test_this_user_needs_nothing_and_others_a_credential(
    home: Home, agent_process: Agent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ok(agent_process("up", *FREE_PORTS))
    ok(agent_process("run", "echo"))
    announced = json.loads(home.gateway_file.read_text())
    grpc_address, http = announced["grpc_address"], announced["http_address"]
    port = grpc_address.rpartition(":")[2]
    for endpoint in (None, grpc_address, f"localhost:{port}", f"http://127.0.0.1:{port}"):
        with Client(endpoint) as client:
            assert client.generate_text("echo", "mine").text == "mine"
        called = agent_process(*(("--endpoint", endpoint) if endpoint else ()), "call", "echo", "mine")
        assert ok(called).out == "mine\n"
    # Another user of this machine has another runtime directory.
    monkeypatch.setenv("UAPI_HOME", str(tmp_path / "another"))
    with Client(grpc_address) as client, pytest.raises(errors.Unauthenticated) as refused:
        client.generate_text("echo", "not mine")
    assert refused.value.reason == "CREDENTIAL_MISSING"
    for path in ("/agents", "/v1/models", "/metrics", "/health/echo", "/agents/echo/.well-known/agent-card.json"):
        with pytest.raises(HTTPError) as page:
            urlopen(http + path, timeout=20)
        error = json.loads(page.value.read())["error"]
        assert (page.value.code, error["reason"], error["message"]) == (
            401,
            "CREDENTIAL_MISSING",
            refused.value.message,
        )
    for path in ("/health", "/docs", "/openapi.json"):
        assert urlopen(http + path, timeout=20).status == 200
    # What it says to send is taken as it stands, and so is what it says to start the platform with.
    said = re.search(r"`(authorization: [^`]*)`.*`agent (up --anonymous call)`", refused.value.message)
    assert said is not None
    argv = ["bash", "-c", f'curl -sf {http}/agents -H "{said[1]}"']
    assert '"echo"' in subprocess.run(argv, check=True, capture_output=True, text=True, timeout=20).stdout
    monkeypatch.setenv("UAPI_HOME", str(home.root))
    ok(agent_process("down"))
    ok(agent_process(*said[2].split(), *FREE_PORTS))
    grpc_address = json.loads(home.gateway_file.read_text())["grpc_address"]
    with Client(grpc_address, token="") as client:
        assert client.generate_text("echo", "anybody's").text == "anybody's"


def test_killed_parts_come_back_and_agents_go_on(home: Home, agent_process: Agent) -> None:
    ok(agent_process("up", *FREE_PORTS))
    ok(agent_process("run", "echo"))
    (worker,) = json.loads(ok(agent_process("ps", "-o", "json")).out)
    for part in ("gateway", "pool"):
        before = pids(agent_process)
        os.kill(before[part], signal.SIGKILL)
        await_another(agent_process, part, before[part])
        assert until(lambda: agent_process("call", "echo", "still here").out) == "still here\n"
    (after,) = json.loads(ok(agent_process("ps", "-o", "json")).out)
    assert after["pid"] == worker["pid"]
    assert "SIGKILL; restart in" in (home.logs / "supervisor.log").read_text()


def test_a_port_in_use(home: Home, agent_process: Agent) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = agent_process("up", "--grpc-port", str(port), "--http-port", "0")
    assert (result.status, result.out, result.err.count("\n")) == (19, "", 1)
    assert str(port) in result.err
    assert processes_of(home) == []
    ok(agent_process("up", *FREE_PORTS))


def test_a_killed_supervisor_leaves_nothing_that_up_or_down_cannot_clear(home: Home, agent_process: Agent) -> None:
    for verb in (("up", *FREE_PORTS), ("down",)):
        ok(agent_process("up", *FREE_PORTS))
        before = pids(agent_process)
        os.kill(before["supervisor"], signal.SIGKILL)
        until(lambda: not supervisor.is_running(home))
        assert agent_process("ps").status == 24
        ok(agent_process(*verb))
        assert not any(processes.start_time(pid) for name, pid in before.items() if name in ("gateway", "pool"))


@pytest.mark.parametrize("killed", [("gateway", "pool"), ("supervisor", "gateway", "pool")])
def test_down_leaves_nothing_of_parts_that_were_killed(
    home: Home, agent_process: Agent, killed: tuple[str, ...]
) -> None:
    ok(agent_process("up", *FREE_PORTS))
    ok(agent_process("run", "echo"))
    before = pids(agent_process)
    for part in killed:
        os.kill(before[part], signal.SIGKILL)
    until(lambda: not any(processes.start_time(before[part]) for part in killed))
    assert ok(agent_process("down")).out == "the platform has stopped\n"
    assert processes_of(home) == []
    assert ok(agent_process("down")).out == "no platform runs on this machine\n"


def test_run_starts_the_platform(home: Home, agent_process: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UAPI_GATEWAY_GRPC_PORT", "0")
    monkeypatch.setenv("UAPI_GATEWAY_HTTP_PORT", "0")
    ok(agent_process("run", "echo", "--replicas", "2"))
    assert len(json.loads(ok(agent_process("ps", "-o", "json")).out)) == 2
    assert ok(agent_process("call", "echo", "hello there")).out == "hello there\n"


def test_a_project_from_init_to_its_answer(home: Home, agent_process: Agent, agent_inside: Agent) -> None:
    ok(agent_process("up", *FREE_PORTS))
    ok(agent_inside("init", "my-agent"))
    ok(agent_inside("build", "my-agent", "-t", "my-agent:1.2.0"))
    ok(agent_inside("run", "my-agent:1.2.0"))
    assert ok(agent_inside("call", "my-agent", "Hello there")).out == "my-agent heard: Hello there\n"
    assert "worker serves" in ok(agent_inside("logs", "my-agent", "--tail", "5")).out
    ok(agent_inside("stop", "my-agent"))
    ok(agent_inside("rmi", "my-agent:1.2.0"))


def workers_of(agent: Agent) -> dict[str, int]:
    """The revision of each worker that is ready."""
    listed = json.loads(ok(agent("ps", "-o", "json")).out)
    return {each["worker_id"]: each["revision"] for each in listed if each["state"] == "WORKER_STATE_READY"}


def pids_of_workers(agent: Agent) -> set[int]:
    return {each["pid"] for each in json.loads(ok(agent("ps", "-o", "json")).out)}


def test_an_agent_is_updated_tried_rolled_back_scaled_and_woken(
    home: Home, agent_process: Agent, agent_inside: Agent
) -> None:
    # Who starts the platform must not be the one that it outlives.
    ok(agent_process("up", *FREE_PORTS))
    ok(agent_inside("init", "my-agent"))
    ok(agent_inside("build", "my-agent", "-t", "my-agent:1"))
    ok(agent_inside("run", "my-agent:1", "--replicas", "2"))
    code = Path("my-agent/agent.py")
    code.write_text(code.read_text().replace("heard:", "understood:"))
    ok(agent_inside("build", "my-agent", "-t", "my-agent:2"))
    refused = agent_inside("run", "my-agent:2")
    assert (refused.status, "`agent update my-agent --image my-agent:2`" in refused.err) == (19, True)

    updated = ok(agent_inside("run", "my-agent:2", "--update"))
    assert "updating to revision 2 (1 of 2 workers)\n" in updated.err
    assert "my-agent runs my-agent:2 at revision 2" in updated.out
    assert ok(agent_inside("call", "my-agent", "hi")).out == "my-agent understood: hi\n"

    canary = sorted(workers_of(agent_inside))[0]
    ok(agent_inside("update", canary, "--image", "my-agent:1"))
    assert sorted(workers_of(agent_inside).values()) == [2, 3]
    assert "at revision 2" in ok(agent_inside("rollback", "my-agent")).out
    assert sorted(workers_of(agent_inside).values()) == [2, 2]
    revisions = json.loads(ok(agent_inside("history", "my-agent", "-o", "json")).out)
    assert [revision["cause"] for revision in revisions] == ["canary", "update", "run"]
    before = pids_of_workers(agent_inside)
    assert ok(agent_inside("restart", "my-agent")).out.startswith("restarted my-agent: ")
    assert not before & pids_of_workers(agent_inside)

    ok(agent_inside("scale", "my-agent", "--replicas", "3", "--memory", "100MB"))
    assert len(workers_of(agent_inside)) == 3
    slept = ok(agent_inside("scale", "my-agent", "--replicas", "0"))
    assert slept.out == "my-agent sleeps and has my-agent:2; the next call wakes it\n"
    until(lambda: "ASLEEP" in ok(agent_inside("ps")).out)
    assert ok(agent_inside("call", "my-agent", "good morning")).out == "my-agent understood: good morning\n"


def test_an_agent_from_outside_joins_and_leaves(home: Home, agent_process: Agent) -> None:
    ok(agent_process("up", *FREE_PORTS))
    example = ROOT / "examples" / "outside" / "outside.py"
    with subprocess.Popen([sys.executable, example], stdout=subprocess.PIPE, text=True) as outside:
        try:
            assert outside.stdout is not None
            assert outside.stdout.readline().startswith("outside-01 serves")
            assert ok(agent_process("call", "outside-01", "hello there")).out == "HELLO THERE \n"
            assert "outside-01  READY" in ok(agent_process("ps", "--agent", "outside-01")).out
            with Client() as client:
                request = {"service": "TextGenerationService", "method": "GenerateText", "data": {"prompt": "hi"}}
                assert client.call_agent("outside-01", request)["text"] == "HI"
        finally:
            outside.terminate()
    assert outside.returncode == 0
    assert agent_process("call", "outside-01", "hello").status == 15


def test_a_gateway_that_forgot_an_agent_is_told_again(home: Home, agent_process: Agent) -> None:
    ok(agent_process("up", *FREE_PORTS))
    record = Record()
    with serving(record) as endpoint, Client() as client:
        data = {"agent_id": "outside-02", "services": ["TextGenerationService"], "endpoint": endpoint}
        client.register_agent(data, lease_ttl_s=1.0)
        # Another operator removes it; the client's own lease brings it back.
        with Client() as other:
            other.registry.DeregisterAgent(registry_pb2.DeregisterAgentRequest(agent_id="outside-02"))
        assert until(lambda: agent_process("call", "outside-02", "again").out) == "again \n"


def test_ctrl_c_ends_a_following_command(home: Home, agent_process: Agent) -> None:
    ok(agent_process("up", *FREE_PORTS))
    ok(agent_process("run", "echo"))
    program = Path(sys.executable).with_name("agent")
    following = subprocess.Popen(
        [program, "logs", "echo", "--follow"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert following.stdout is not None
    assert following.stdout.readline()
    following.send_signal(signal.SIGINT)
    _, err = following.communicate(timeout=10)
    assert (following.returncode, err) == (130, "")
