"""Secrets: who gets them, and that nobody else can read them anywhere."""

import contextlib
import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from agentruntime import errors
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb
from agentruntime.redaction import Redactor

from tests.conformance.stage import IMAGE, Stage
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.root]
_READ = """
def answer():
    from agentruntime import secrets
    return secrets.text("{}")
"""
# In every way that an agent may print it.
_PRINT = """
def answer():
    import base64, subprocess, sys
    from agentruntime import secrets
    value = secrets.text("{}")
    print("plain", value, file=sys.stderr)
    print("encoded", base64.b64encode(("user:" + value).encode()).decode())
    logging.getLogger("x").warning("logged %s", value)
    subprocess.run(["cat", "/run/secrets/{}"], check=True)
    raise ValueError(value)
"""


def test_missing_secret(stage: Stage) -> None:
    """An agent that needs a secret which is not set for it does not start, and what sets it is said."""
    permissions = pb.Permissions(secrets=["absent"])
    with pytest.raises(errors.FailedPrecondition, match="agent secrets set absent --agents lacking") as refused:
        stage.run("lacking", permissions=permissions)
    assert refused.value.reason == "SECRET_NOT_SET"
    stage.agent("secrets", "set", "absent", "--agents", "another", stdin="someone-elses")
    try:
        with pytest.raises(errors.FailedPrecondition, match="for other agents only"):
            stage.run("lacking", permissions=permissions)
    finally:
        stage.agent("secrets", "delete", "absent")
    assert stage.workers("lacking") == []


def test_secret_files(stage: Stage) -> None:
    """A secret that an agent may use and that was set for it is a file in memory which only its worker can read."""
    stage.agent("secrets", "set", "first", "--agents", "holder", stdin="value-of-first\n")
    stage.agent("secrets", "set", "holder/second", stdin="value-of-second\n")
    try:
        with stage.running("holder", permissions=pb.Permissions(secrets=["first", "second"])):
            code = """
            def answer():
                place = "/run/secrets"
                inside = sorted(os.listdir(place))
                mount = [line.split() for line in open("/proc/mounts") if f" {place} " in line]
                own = all(os.stat(f"{place}/{name}").st_uid == os.getuid() for name in inside)
                modes = [oct(os.stat(f"{place}/{name}").st_mode & 0o777) for name in ["", *inside]]
                return [inside, [each[2] for each in mount], own, modes, open(f"{place}/second").read()]
            """
            expected = [["first", "second"], ["tmpfs"], True, ["0o500", "0o400", "0o400"], "value-of-second"]
            assert stage.ask("holder", code) == str(expected)
    finally:
        for name in ("first", "holder/second"):
            stage.agent("secrets", "delete", name)


def test_secret_is_nowhere_else(stage: Stage) -> None:
    """Through an agent's whole life, its secrets are in no file, environment, command line, log, event or answer."""
    values = ["sk-first-0123456789", "sk-second-0123456789"]
    said: list[str] = []

    def agent(*arguments: str, code: int = 0, stdin: str | None = None) -> str:
        done = stage.agent(*arguments, code=code, stdin=stdin)
        said.extend((done.stdout, done.stderr))
        return done.stdout

    with _events(stage, said):
        agent("secrets", "set", "key", "--agents", "secretive", stdin=values[0])
        try:
            # What a loaded machine does to health checks must not restart it, for it would have the new value then.
            unhurried = pb.HealthCheck(failure_action=pb.HEALTH_FAILURE_ACTION_IGNORE)
            permissions = pb.Permissions(secrets=["key"])
            with stage.running("secretive", permissions=permissions, health_check=unhurried):
                _live(stage, said, values)
                agent("secrets", "set", "key", stdin=values[1])
                [listed] = json.loads(agent("secrets", "list", "--output", "json"))
                assert listed["outdated_agents"] == ["secretive"]
                agent("restart", "secretive")
                [listed] = json.loads(agent("secrets", "list", "--output", "json"))
                assert listed["outdated_agents"] == []
                assert stage.ask("secretive", _READ.format("key")) == values[1]
                for command in (["ps"], ["history", "secretive"], ["logs", "secretive"], ["doctor"], ["status"]):
                    agent(*command)
                    agent(*command, *([] if command[0] == "logs" else ["--output", "json"]))
                _assert_nowhere(stage, said, values)
        finally:
            agent("secrets", "delete", "key")
    _assert_nowhere(stage, said, values)


def _live(stage: Stage, said: list[str], values: list[str]) -> None:
    """Answers, prints, fails, crashes, is updated, sleeps and wakes."""
    pool = stage.client.pool
    assert stage.ask("secretive", _READ.format("key")) == values[0]
    with pytest.raises(errors.AgentError) as failed:
        stage.ask("secretive", _PRINT.format("key", "key"))
    said.append(failed.value.message)
    # As soon as the pool has looked at what the child process printed.
    until(lambda: "[secret key]***" in _log(stage, "secretive-01"))
    assert _log(stage, "secretive-01").count("[secret key]") >= 5
    before = stage.worker("secretive-01")
    with contextlib.suppress(errors.AgentError):
        # A fault, which the first process of a container cannot ignore, as it does a signal of its own.
        stage.ask("secretive", "def answer(): __import__('ctypes').string_at(0)")
    crashed = stage.until("secretive-01", lambda worker: worker.restarts and worker.state == pb.WORKER_STATE_READY)
    assert crashed.pid != before.pid
    at_start = pb.AgentSettings(env={"AT_START": "raise ValueError(open('/run/secrets/key').read())"})
    with pytest.raises(errors.FailedPrecondition, match=r"\[secret key\]") as failed:
        pool.UpdateAgent(pb.UpdateAgentRequest(name="secretive", settings=at_start))
    said.append(failed.value.message)
    pool.UpdateAgent(pb.UpdateAgentRequest(name="secretive", settings=pb.AgentSettings(env={"AT_START": "pass"})))
    pool.ScaleAgent(pb.ScaleAgentRequest(agent="secretive", replicas=0))
    until(lambda: not stage.workers("secretive"))
    assert stage.ask("secretive", _READ.format("key")) == values[0]
    said.append(str(pool.ListRevisions(pb.ListRevisionsRequest(agent="secretive"))))
    said.append(str(stage.worker("secretive-01")))


def _log(stage: Stage, worker_id: str) -> str:
    agent = worker_id.rpartition("-")[0]
    return (stage.home.logs / "agents" / agent / f"{worker_id}.log").read_text()


@contextmanager
def _events(stage: Stage, said: list[str]) -> Iterator[None]:
    """Notes what whoever watches deployments is told."""
    stream = stage.client.pool.WatchDeployments(pb.WatchDeploymentsRequest(), timeout=600)

    def note() -> None:
        with contextlib.suppress(Exception):  # it ends by being cancelled
            said.extend(str(event) for event in stream)

    reader = threading.Thread(target=note)
    reader.start()
    try:
        yield
    finally:
        stream.cancel()
        reader.join(10)


def _assert_nowhere(stage: Stage, said: list[str], values: list[str]) -> None:
    finder = Redactor({"value": [value.encode() for value in values]})
    assert not [text for text in said if finder.text(text) != text]
    until(lambda: not _found(_files(stage.home.root), finder))
    assert not _found(_processes(), finder)
    if stage.engine is not None:
        with contextlib.closing(stage.engine.client()) as client:
            for ident in stage.containers():
                about = client.api.inspect_container(ident)
                assert finder.text(json.dumps(about)) == json.dumps(about)
                made = client.images.get(about["Image"])
                image = json.dumps([made.attrs, made.history()])
                assert finder.text(image) == image
                # Nothing of it is in the container's own layer, which is on the disk.
                changed = [each["Path"] for each in client.api.diff(ident) or []]
                assert not [path for path in changed if path.startswith("/run/secrets/")]
    assert IMAGE in (stage.agent("images").stdout)


def _found(contents: Iterable[tuple[str, bytes]], finder: Redactor) -> list[str]:
    return [place for place, content in contents if finder.redact(content) != content]


def _files(root: Path) -> Iterator[tuple[str, bytes]]:
    for path in root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError):  # it goes while it is read
                yield str(path), path.read_bytes()


def _processes() -> Iterator[tuple[str, bytes]]:
    """Environments and command lines, of everything that runs."""
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("environ", "cmdline"):
            with contextlib.suppress(OSError):
                yield f"{process}/{name}", (process / name).read_bytes()
