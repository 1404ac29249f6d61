"""Each verb against a server: what it sends, and what it prints."""

import fcntl
import io
import json
import tarfile
import time
from pathlib import Path

import pytest
from agentruntime import errors, supervisor
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_pb2
from agentruntime._proto.uapi.v1 import text_generation_pb2
from agentruntime.cli.logs import readable
from agentruntime.cli.run import _say_how_to_call, unary_methods
from agentruntime.home import Home
from agentruntime.manifest import AgentManifest
from google.protobuf import descriptor_pb2

from tests.agentruntime.cli.conftest import Agent
from tests.agentruntime.platform_services import TEXT_SERVICE, Record


def test_status(agent: Agent) -> None:
    result = agent("status")
    assert result.out.splitlines()[0].split() == ["PROCESS", "PID", "VERSION", "UP", "ADDRESSES"]
    assert result.out.splitlines()[1].split() == ["gateway", "7", "0.1.0", "1m", "30s", "127.0.0.1:50051"]
    assert result.err == "the database is away\n"
    assert json.loads(agent("status", "-o", "json").out)["processes"][0]["pid"] == 7


def test_status_of_another_machine_says_nothing_of_this_one(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home.default()
    home.create()
    home.supervisor_file.write_text(json.dumps({"pid": 1, "start_time": 0, "version": "x", "children": []}))
    with supervisor.lock_file(home).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "supervisor" not in agent("status").out
        monkeypatch.setenv("UAPI_ENDPOINT", "127.0.0.1:1")
        assert agent("status").status == 24
        monkeypatch.delenv("UAPI_ENDPOINT")
        # Here the gateway does not answer, and the supervisor's own record is shown.
        result = agent("status")
    assert (result.status, "supervisor" in result.out) == (0, True)
    assert result.err.startswith("the gateway does not answer")


def test_ps(agent: Agent, record: Record) -> None:
    header, row = agent("ps", "--agent", "my-agent").out.splitlines()
    assert header.split()[:4] == ["WORKER", "STATE", "REVISION", "PID"]
    assert row.split()[:7] == ["my-agent-01", "READY", "1", "4242", "2", "12%", "5GB"]
    assert record.requests[0].agent == "my-agent"
    (worker,) = json.loads(agent("ps", "--output", "json").out)
    assert {"worker_id", "agent", "revision", "state", "pid", "restarts", "reason"} <= worker.keys()
    assert worker["state"] == "WORKER_STATE_READY"


def test_run_sends_what_was_set_and_nothing_else(agent: Agent, record: Record) -> None:
    result = agent(
        "run", "my-agent:1.0", "--memory", "2GB", "--cpu", "2", "--native", "--replicas", "0", "-e", "A=b=c"
    )
    assert result.status == 0
    expected = pool_pb2.RunAgentRequest(image="my-agent:1.0", replicas=0)
    expected.settings.mode = pool_pb2.RUNTIME_MODE_NATIVE
    expected.settings.env["A"] = "b=c"
    expected.settings.resources.memory_bytes = 2 * 10**9
    expected.settings.resources.cpu_millis = 2000
    assert record.requests == [expected]
    assert result.out.startswith("my-agent sleeps and has my-agent:1.0; the next call wakes it\n")
    assert "note: the network is not isolated here" in result.err


def test_run_says_which_mode_where_nobody_asked(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "note: it runs as processes" in agent("run", "my-agent").err
    assert "note: it runs" not in agent("run", "my-agent", "--native").err
    monkeypatch.setenv("AGENT_RUNTIME_MODE", "native")
    assert "note: it runs" not in agent("run", "my-agent").err


def test_run_says_how_to_call(agent: Agent) -> None:
    result = agent("run", "my-agent:1.0")
    assert "my-agent runs my-agent:1.0: my-agent-01" in result.out
    assert 'agent call my-agent "Once upon a time"' in result.out
    assert "agent chat" not in result.out


def test_of_conversations_run_says_agent_chat(capsys: pytest.CaptureFixture[str]) -> None:
    _say_how_to_call(pool_pb2.Deployment(agent="helper", services=["uapi.v1.ConversationService"]))
    assert capsys.readouterr().out == "Talk with it:  agent chat helper\n"


def test_run_with_every_flag(agent: Agent, record: Record) -> None:
    flags = "--name x --memory-limit 1GiB --cpu-limit 500m --gpu 1 --venv v --network host --log-level debug"
    assert agent("run", "my-agent", *flags.split(), "--allow-unenforced").status == 0
    request = record.requests[0]
    assert (request.agent, request.settings.network, request.settings.log_level) == (
        "x",
        pool_pb2.NETWORK_MODE_HOST,
        "DEBUG",
    )
    assert (request.settings.resources.memory_limit_bytes, request.settings.resources.cpu_limit_millis) == (
        2**30,
        500,
    )
    assert (request.settings.resources.gpus, request.allow_unenforced) == (1, True)
    assert request.settings.venv == str(Path.cwd() / "v")


def test_run_reads_the_configuration_file(agent: Agent, record: Record) -> None:
    Path("runtime-config.yaml").write_text(
        "runtime: {mode: native, resources: {memory: 1GB, cpu: 2}, health_check: {interval: 30s, retries: 3}}"
    )
    assert agent("run", "my-agent", "--memory", "3GB").status == 0
    request = record.requests[0]
    assert (request.settings.resources.memory_bytes, request.settings.resources.cpu_millis) == (3 * 10**9, 2000)
    assert (request.settings.health_check.interval_seconds, request.settings.health_check.retries) == (30.0, 3)


def test_run_says_which_methods_can_be_called() -> None:
    files = descriptor_pb2.FileDescriptorSet()
    text_generation_pb2.DESCRIPTOR.CopyToProto(files.file.add())
    deployment = pool_pb2.Deployment(services=[TEXT_SERVICE], descriptors=files.SerializeToString())
    assert unary_methods(deployment) == [(TEXT_SERVICE, "GenerateText"), (TEXT_SERVICE, "GetHealth")]
    deployment.services[:] = ["other.Service"]
    assert unary_methods(deployment) == []


def test_run_as_json(agent: Agent) -> None:
    data = json.loads(agent("run", "my-agent", "-o", "json").out)
    assert data["agent"] == "my-agent"
    assert data["workers"][0]["worker_id"] == "my-agent-01"
    assert "descriptors" not in data


@pytest.mark.parametrize(
    ("argv", "says", "status"),
    [
        (["--memory", "2 gigs"], "--memory: '2 gigs' is not a size", 13),
        (["--cpu", "fast"], "--cpu: 'fast' is not a CPU share", 13),
        (["--env", "A"], "--env: 'A' is not NAME=VALUE", 13),
        (["--network", "bridge"], "--network", 13),
        (["--name", "Not_A_Name"], "is not an agent name", 13),
        (["--config", "none.yaml"], "none.yaml cannot be read", 13),
    ],
)
def test_run_refuses(agent: Agent, record: Record, argv: list[str], says: str, status: int) -> None:
    result = agent("run", "my-agent", *argv)
    assert (result.status, result.out, result.err.count("\n")) == (status, "", 1)
    assert says in result.err
    assert record.requests == []


def test_run_refuses_what_was_set_and_is_not_there(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_RUNTIME_MODE", "serverless")
    result = agent("run", "my-agent")
    assert (result.status, "mode 'serverless' is not available" in result.err) == (19, True)
    assert agent("run", "my-agent", "--native").status == 0
    assert agent("ps").status == 0


def test_call_streams(agent: Agent, record: Record) -> None:
    result = agent("call", "my-agent", "a b c", "--temperature", "0.5", "--max-tokens", "7", "--timeout", "9s")
    assert (result.status, result.out) == (0, "a b c \n")
    assert (record.requests[0].temperature, record.requests[0].max_tokens) == (0.5, 7)
    assert record.metadata["x-uapi-agent"] == "my-agent"
    assert record.time_remaining_s == pytest.approx(9, abs=2)


def test_call_as_json(agent: Agent) -> None:
    data = json.loads(agent("call", "my-agent", "hi", "-o", "json").out)
    assert data == {"text": "echo: hi", "confidence": 0.5, "tokens_used": 2}


def test_call_a_method(agent: Agent, record: Record) -> None:
    argv = ["call", "my-agent", "--service", "acme.v1.Greeter", "--method", "Greet", "--data", '{"name": "Ada"}']
    assert json.loads(agent(*argv).out)["text"] == "hi"
    assert (record.requests[0].service, dict(record.requests[0].data)) == ("acme.v1.Greeter", {"name": "Ada"})


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--service", "S"], "--service and --method belong together"),
        (["--data", "{}"], "--data is the request of a method"),
        (["--service", "S", "--method", "M", "--data", "{"], "--data is not JSON"),
        (["--service", "S", "--method", "M", "--data", "[]"], "--data is not a JSON object"),
        ([" "], "the prompt is empty"),
        (["x", "--timeout", "soon"], "'soon' is not a duration"),
    ],
)
def test_call_refuses(agent: Agent, argv: list[str], says: str) -> None:
    result = agent("call", "my-agent", *argv)
    assert (result.status, result.err.count("\n")) == (13, 1)
    assert says in result.err


def test_call_says_what_went_wrong_below_the_text_that_came(agent: Agent) -> None:
    result = agent("call", "my-agent", "so far cut")
    assert (result.status, result.out, result.err) == (24, "so far cut \n", "error: the worker ended\n")


def test_call_an_unknown_agent(agent: Agent, record: Record) -> None:
    record.raises["StreamText"] = errors.AgentNotFound("nobody")
    result = agent("call", "nobody", "x")
    assert (result.status, result.err) == (15, "error: agent 'nobody' not found\n")


@pytest.mark.parametrize(
    "argv", [["x"], ["x", "-o", "json"], ["--service", "S", "--method", "M"]], ids=["text", "json", "method"]
)
def test_call_of_an_agent_that_converses_says_how_to_talk_with_it(
    agent: Agent, record: Record, argv: list[str]
) -> None:
    record.raises = dict.fromkeys(("StreamText", "GenerateText", "CallAgent"), errors.Unimplemented("no S"))
    plain = agent("call", "my-agent", *argv)
    assert (plain.status, "agent chat" in plain.err) == (22, False)
    record.services = ["uapi.v1.ConversationService"]
    result = agent("call", "my-agent", *argv)
    hint = "; it holds conversations, so talk with it: agent chat my-agent\n"
    assert (result.status, result.err) == (22, plain.err.removesuffix("\n") + hint)
    # Where all is well nobody is asked.
    record.raises, record.requests[:] = {}, []
    assert agent("call", "my-agent", *argv).status == 0
    assert len(record.requests) == 1


def test_call_that_was_not_done_in_time_says_what_it_met(agent: Agent, record: Record) -> None:
    record.holds.clear()
    assert "give it more with --timeout 2m" in agent("call", "my-agent", "x", "--timeout", "200ms").err
    record.failures = [errors.AgentNotReady("its worker ended")]
    result = agent("call", "my-agent", "x", "--timeout", "500ms")
    record.holds.set()
    assert result.err == "error: my-agent was not done in time: its worker ended\n"


def test_call_an_agent_that_generates_no_text(agent: Agent, record: Record) -> None:
    record.raises["StreamText"] = errors.Unimplemented("no such method")
    result = agent("call", "greeter", "x")
    assert (result.status, "--service" in result.err) == (22, True)


def test_call_of_an_agent_with_a_bug_says_where_its_traceback_is(agent: Agent, record: Record) -> None:
    record.raises["StreamText"] = errors.Internal("internal error, request id 7", metadata={"request_id": "7"})
    result = agent("call", "my-agent", "x")
    expected = "error: internal error, request id 7; its traceback is in the agent's log: agent logs my-agent\n"
    assert (result.status, result.err) == (23, expected)
    record.raises["StreamText"] = errors.Internal("odd")
    assert agent("call", "my-agent", "x").err == "error: odd\n"


def test_stop(agent: Agent, record: Record) -> None:
    assert agent("stop", "my-agent", "--grace", "1500ms").out == "stopped my-agent-01\n"
    assert record.requests[0].grace_period.ToMilliseconds() == 1500
    assert agent("stop", "my-agent").status == 0
    assert not record.requests[1].HasField("grace_period")
    assert agent("stop", "my-agent", "--grace", "never").status == 13
    assert json.loads(agent("stop", "my-agent", "-o", "json").out) == {"worker_ids": ["my-agent-01"]}


def test_logs(agent: Agent, record: Record) -> None:
    assert agent("logs", "my-agent").out.splitlines()[0] == "my-agent-01  line 0"
    assert agent("logs", "my-agent-01", "--tail", "1", "--level", "warning").out == "line 0\n"
    assert (record.requests[1].level, record.requests[1].tail) == ("WARNING", 1)
    (line,) = agent("logs", "my-agent", "--tail", "1", "-f", "-o", "json").out.splitlines()
    assert json.loads(line)["line"] == "line 0"
    assert record.time_remaining_s is None or record.time_remaining_s > 10_000


def test_logs_since(agent: Agent, record: Record) -> None:
    (line, *_) = agent("logs", "my-agent", "--since", "10m", "--json").out.splitlines()
    assert json.loads(line)["line"] == "line 0"
    assert 595 < time.time() - record.requests[0].since.seconds < 700
    agent("logs", "my-agent", "--since", "2026-01-31T12:00:00+01:00")
    assert record.requests[1].since.ToJsonString() == "2026-01-31T11:00:00Z"
    agent("logs", "my-agent")
    assert not record.requests[2].HasField("since")
    for wrong in ("yesterday", "2026-13-01T00:00:00Z", "9999999999999d"):
        result = agent("logs", "my-agent", "--since", wrong)
        assert result.status == 2
        assert "write a duration" in " ".join(result.err.split())


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("plain \x1b[1mtext", "a-01  plain \x1b[1mtext"),
        ('{"event": 1}', 'a-01  {"event": 1}'),
        ("[1]", "a-01  [1]"),
        (
            '{"n": 2, "event": "worker serves", "worker_id": "a-01", "agent": "a", "revision": 1, "level": "info",'
            ' "logger": "x", "time": "2026-01-02T03:04:05Z", "who": "Ada L", "services": ["s.S"], "stage": "load"}',
            '2026-01-02T03:04:05Z INFO    a-01  worker serves  n=2 who="Ada L" services=["s.S"] stage=load',
        ),
        (
            '{"event": "bug", "level": "error", "time": "T", "exception": "Traceback:\\n  File \\"a.py\\"\\nE: no"}',
            'T ERROR   a-01  bug\n    Traceback:\n      File "a.py"\n    E: no',
        ),
    ],
)
def test_log_lines_for_people(line: str, shown: str) -> None:
    assert readable(line, "a-01") == shown
    assert readable(line, "") == shown.replace("a-01  ", "")


def test_init_writes_a_project_that_the_platform_reads(agent: Agent) -> None:
    result = agent("init", "my-agent")
    assert result.status == 0
    assert "agent run my-agent:0.1.0" in result.out
    assert AgentManifest.load(Path("my-agent")).entrypoint == "agent:MyAgent"
    compile(Path("my-agent/agent.py").read_text(), "agent.py", "exec")


def test_init_never_overwrites(agent: Agent) -> None:
    Path("my-agent").mkdir()
    Path("my-agent/agent.py").write_text("mine")
    result = agent("init", "my-agent")
    assert (result.status, "exists already" in result.err) == (16, True)
    assert Path("my-agent/agent.py").read_text() == "mine"
    assert not Path("my-agent/agent.yaml").exists()


@pytest.mark.parametrize("name", ["Bad_Name", "../x", "", "a/b"])
def test_init_refuses_names(agent: Agent, name: str) -> None:
    assert agent("init", name).status == 13


def test_init_names_a_class_for_any_name(agent: Agent) -> None:
    agent("init", "7-seas")
    assert AgentManifest.load(Path("7-seas")).entrypoint == "agent:Agent7Seas"


def test_build_sends_the_project_without_what_is_not_the_agent(agent: Agent, record: Record) -> None:
    agent("init", "my-agent")
    project = Path("my-agent")
    for left_out in (".git/config", "__pycache__/agent.pyc", ".venv/bin/python", "sub/__pycache__/x.pyc", ".env"):
        (project / left_out).parent.mkdir(parents=True, exist_ok=True)
        (project / left_out).write_text("x")
    (project / "sub/data.txt").write_text("data")
    (project / "big.bin").write_bytes(b"x" * (3 * 2**20))
    result = agent("build", "my-agent", "-t", "my-agent:1.2.0")
    assert result.status == 0
    assert "built my-agent:0.1.0" in result.out
    assert result.err == "reading the project\n"
    assert record.requests[0].spec.reference == "my-agent:1.2.0"
    chunks = [request.chunk for request in record.requests[1:]]
    assert max(map(len, chunks)) <= 2**20
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as tar:
        assert sorted(tar.getnames()) == ["agent.py", "agent.yaml", "big.bin", "sub", "sub/data.txt"]


def test_the_same_project_packs_the_same(agent: Agent, record: Record) -> None:
    agent("init", "my-agent")
    agent("build", "my-agent")
    first = [request.chunk for request in record.requests]
    Path("my-agent/agent.py").touch()
    record.requests.clear()
    agent("build", "my-agent")
    assert [request.chunk for request in record.requests] == first


def test_build_refuses(agent: Agent, record: Record) -> None:
    assert "is no folder" in agent("build", "nowhere").err
    Path("empty").mkdir()
    assert "has no agent.yaml; `agent init` makes one" in agent("build", "empty").err
    agent("init", "my-agent")
    assert agent("build", "my-agent", "-t", "My:Tag").status == 13
    Path("my-agent/sub").mkdir()
    Path("my-agent/sub/wrong.py").write_text("x = 1\n\ndef f(:\n")
    result = agent("build", "my-agent")
    assert result.status == 13
    assert result.err.startswith("error: sub/wrong.py, line 3: ")
    assert "def f(:" in result.err
    assert record.requests == []


def test_images_and_rmi(agent: Agent, record: Record) -> None:
    assert agent("images").out.splitlines()[1].split()[:3] == ["my-agent:0.1.0", "sha256:abababababab", "1.23kB"]
    assert json.loads(agent("images", "-o", "json").out)[0]["size_bytes"] == 1234
    assert agent("rmi", "my-agent").out == "removed my-agent:latest\n"
    assert record.requests[-1].reference == "my-agent:latest"
    assert agent("rmi", "a:b:c").status == 13


def test_tag_push_and_pull(agent: Agent, record: Record) -> None:
    there = "localhost:5000/team/my-agent:1.2"
    assert agent("tag", "my-agent", there).out.startswith(f"my-agent:latest is also {there} (sha256:abab")
    assert (record.requests[-1].reference, record.requests[-1].new_reference) == ("my-agent:latest", there)
    result = agent("push", "my-agent:1.2", there)
    assert (result.out, result.err) == (f"pushed {there} (sha256:{'ab' * 32})\n", "sending the requirements\n")
    assert agent("push", there).status == 0
    assert (record.requests[-1].reference, record.requests[-1].destination) == (there, "")
    result = agent("pull", there)
    assert (result.out.splitlines()[1], result.err) == (f"Run it:  agent run {there}", "fetching the code\n")
    assert json.loads(agent("pull", there, "-o", "json").out)["reference"] == there
    assert json.loads(agent("push", there, "-o", "json").out)["pushed"] == there
    for argv in (["tag", "my-agent", "a:b:c"], ["push", "A/b"], ["pull", "a:b:c"]):
        assert agent(*argv).status == 13


def test_build_makes_a_container_image_and_shows_how(agent: Agent, record: Record) -> None:
    agent("init", "my-agent")
    record.container_image = "sha256:" + "cd" * 32
    result = agent("build", "my-agent", "--container")
    assert record.requests[0].spec.container
    assert f"container image my-agent:0.1.0 ({record.container_image})\n" in result.out
    result = agent("build", "my-agent", "--show-dockerfile")
    assert result.out == "FROM python:3.12-slim\n"
    assert "built my-agent:0.1.0" in result.err
    assert "sha256:cdcdcdcdcdcd" in agent("images").out


def test_a_key_pair_signs_and_verifies(agent: Agent, record: Record, tmp_path: Path) -> None:
    made = agent("keypair", "release")
    assert made.out.startswith("made release.key and release.pub\n")
    assert (Path("release.key").stat().st_mode & 0o777, Path("release.pub").stat().st_mode & 0o777) == (0o600, 0o644)
    again = agent("keypair", "release")
    assert (again.status, again.err) == (16, "error: release.key is there already; choose another name\n")
    assert (agent("verify", "my-agent").status, agent("verify", "my-agent", "--key", "release.pub").status) == (
        19,
        19,
    )

    digest = "sha256:" + "ab" * 32
    assert agent("sign", "my-agent:1", "--key", "release.key").out == f"signed my-agent ({digest})\n"
    assert record.requests[-1].reference == f"my-agent@{digest}"
    said = agent("verify", "my-agent", "--key", "release.pub")
    assert (said.status, said.out) == (0, f"my-agent ({digest}) is signed by release.pub\n")
    # The same again says so and adds nothing.
    assert agent("sign", "my-agent", "--key", "release.key").status == 0
    assert len(record.signatures) == 1

    # A digest that was asked for is the one that is answered for, and nothing else is signed.
    pinned = f"my-agent@sha256:{'cd' * 32}"
    for verb in (
        ("sign", pinned, "--key", "release.key"),
        ("verify", pinned, "--key", "release.pub"),
        ("verify", pinned),
    ):
        refused = agent(*verb)
        assert (refused.status, f"answered for {digest} when asked for {pinned}" in refused.err) == (19, True)
    assert len(record.signatures) == 1
    assert agent("verify", f"my-agent@{digest}", "--key", "release.pub").status == 0

    other = agent("verify", "other", "--key", "release.pub")
    assert (other.status, "is signed as 'my-agent'" in other.err) == (19, True)
    assert agent("keypair", "stranger").status == 0
    assert "by none of the trusted keys" in agent("verify", "my-agent", "--key", "stranger.pub").err
    assert agent("verify", "my-agent", "--key", "release.key").status == 13
    assert agent("sign", "my-agent", "--key", "none").err.startswith("error: the private key none cannot be read")


def test_a_private_key_may_be_locked(agent: Agent, record: Record) -> None:
    Path("word").write_text("let me in\n")
    Path("wrong").write_text("let me out\n")
    assert agent("keypair", "locked", "--passphrase-file", "word").status == 0
    assert b"ENCRYPTED" in Path("locked.key").read_bytes()
    sign = ("sign", "my-agent", "--key", "locked.key")
    assert "with --passphrase-file" in agent(*sign).err
    assert "not its passphrase" in agent(*sign, "--passphrase-file", "wrong").err
    assert agent(*sign, "--passphrase-file", "word").status == 0
    Path("word").write_text("\n")
    assert "is empty" in agent(*sign, "--passphrase-file", "word").err
    assert "cannot be read" in agent(*sign, "--passphrase-file", "none").err


def test_run_says_where_an_image_comes_from(agent: Agent, record: Record) -> None:
    for source, says in (("local", ""), ("docker", "the container engine"), ("r.io:5000", "the registry r.io:5000")):
        record.image_source = source
        result = agent("run", "r.io:5000/team/my-agent")
        assert (f"the image comes from {says}" in result.err) is bool(says)
        assert "my-agent runs r.io:5000/team/my-agent" in result.out


def test_doctor(agent: Agent) -> None:
    result = agent("doctor")
    assert "cgroup v1" in result.out
    assert "2 of 2 CPU, 4GB of 4GB memory and 0 of 0 GPUs are free" in result.out
    findings = json.loads(agent("doctor", "-o", "json").out)
    assert {"what": "memory limit", "ok": True, "detail": "cgroup v1"} in findings
    told = {finding["what"]: (finding["ok"], finding["detail"]) for finding in findings}
    assert told["identity providers"] == (False, "providers[2].name: too long")
    assert told["identity provider corp"][1].startswith("2 keys, kept for ")
    assert told["identity provider new"] == (
        False,
        "no token of it can be checked yet: its keys are being fetched",
    )


def test_without_a_platform(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UAPI_ENDPOINT")
    for argv in (["ps"], ["status"], ["call", "a", "b"], ["stop", "a"], ["logs", "a"], ["images"], ["rmi", "a"]):
        result = agent(*argv)
        expected = "error: no platform runs on this machine; start it with `agent up`\n"
        assert (result.status, result.out, result.err) == (24, "", expected)
    assert agent("doctor").status == 0
    assert agent("down").out == "no platform runs on this machine\n"


def test_a_runtime_directory_that_cannot_be(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UAPI_ENDPOINT")
    Path("file").touch()
    monkeypatch.setenv("UAPI_HOME", str(Path("file").absolute()))
    result = agent("up")
    assert (result.status, result.err.count("\n")) == (19, 1)
    assert "name another by UAPI_HOME" in result.err
    assert agent("ps").status == 24


def test_an_endpoint_where_nobody_listens(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UAPI_ENDPOINT", "127.0.0.1:1")
    result = agent("ps")
    assert (result.status, result.err.count("\n")) == (24, 1)
    assert "nothing answers at 127.0.0.1:1" in result.err
