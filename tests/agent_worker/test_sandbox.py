"""What an agent's process cannot do, each beside the same attempt outside the sandbox, which succeeds."""

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_worker import sandbox
from tests.agent_worker import templates
from tests.agent_worker.test_template import ask

pytestmark = [pytest.mark.integration, pytest.mark.root]
# An agent that runs the code it is sent: the worst there can be.
ANYTHING = """
from agentruntime.agent import Agent
class A(Agent):
    def generate(self, prompt, *, temperature, max_tokens):
        result = {}
        try:
            exec(prompt, result)
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
        return str(result.get("answer"))
"""


@pytest.fixture(scope="module")
def workers() -> Iterator[dict[str, templates.Worker]]:
    """Two isolated workers of one agent (the first was a spare), one of another, and one without isolation."""
    with templates.base() as base:
        code = textwrap.dedent(ANYTHING)
        isolated = base.load("isolated", templates.write_bundle(base.directory / "b1", m=code), "m:A")
        other = base.load(
            "other",
            templates.write_bundle(base.directory / "b2", m=code),
            "m:A",
            uid_base=templates.UID_BASE + 4096,
        )
        outside = base.load(
            "outside", templates.write_bundle(base.directory / "b3", m=code), "m:A", isolated=False, uid_base=0
        )
        assert isolated.answer["degraded"] == []
        made = {
            "first": isolated.fork(1, spare=isolated.spare(1)),
            "second": isolated.fork(2),
            "other": other.fork(1),
            "outside": outside.fork(1),
        }
        for worker in made.values():
            assert worker.event() == {"event": "listening"}
        yield made


def attempt(workers: dict[str, templates.Worker], code: str) -> tuple[str, str]:
    """What an isolated worker, and one outside, make of the same code."""
    return ask(workers["first"], code), ask(workers["outside"], code)


def unrestricted(code: str) -> str:
    """What a process that is no worker makes of it."""
    argv = [sys.executable, "-c", code + "\nprint(answer)"]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def test_no_network(workers: dict[str, templates.Worker]) -> None:
    inside, outside = attempt(workers, "import os; answer = sorted(os.listdir('/proc/self/net'))[0]; "
                              "answer = len(open('/proc/self/net/dev').readlines()) - 2")  # fmt: skip
    assert inside == "1"  # loopback
    assert int(outside) >= 1
    inside, outside = attempt(workers, "import os; answer = os.readlink('/proc/self/ns/net')")
    assert outside == str(Path("/proc/self/ns/net").readlink()) != inside


def test_siblings_have_networks_of_their_own(workers: dict[str, templates.Worker]) -> None:
    code = "import os; answer = os.readlink('/proc/self/ns/net')"
    assert ask(workers["first"], code) != ask(workers["second"], code)


def test_no_other_process_is_seen_or_signalled(workers: dict[str, templates.Worker]) -> None:
    pids = {name: worker.pid for name, worker in workers.items()}
    for victim in ("second", "other", "outside"):
        inside, outside = attempt(workers, f"import os; answer = os.kill({pids[victim]}, 0)")
        assert inside.startswith("PermissionError")
        assert outside == "None"
        inside, outside = attempt(workers, f"import os; answer = os.path.exists('/proc/{pids[victim]}')")
        assert (inside, outside) == ("False", "True")


def test_no_trace_of_a_sibling(workers: dict[str, templates.Worker]) -> None:
    code = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE = 0x4206
answer = libc.ptrace(PTRACE_SEIZE, {pid}, 0, 0)
libc.ptrace(17, {pid}, 0, 0)
"""
    assert ask(workers["first"], code.format(pid=workers["second"].pid)) == "-1"
    assert ask(workers["outside"], code.format(pid=workers["second"].pid)) == "0"


def test_the_hosts_files_are_not_there(workers: dict[str, templates.Worker], tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    for path in (str(secret), "/etc/shadow", "/var", "/root/.bashrc"):
        inside, _ = attempt(workers, f"answer = open({path!r}).read()")
        assert "FileNotFoundError" in inside or "PermissionError" in inside
    assert attempt(workers, f"answer = open({str(secret)!r}).read()")[1] == "s3cret"


@pytest.mark.parametrize("path", ["/x", "/usr/x", "/agent/app/m.py", "/etc/passwd", "/dev/x"])
def test_the_view_is_read_only(workers: dict[str, templates.Worker], path: str) -> None:
    assert "Error" in ask(workers["first"], f"answer = open({path!r}, 'a')")


def test_scratch_space_is_writable_and_private(workers: dict[str, templates.Worker]) -> None:
    code = "open('/tmp/mine', 'w').write('x'); answer = open('/tmp/mine').read()"
    assert ask(workers["first"], code) == "x"
    assert not Path("/tmp/mine").exists()
    for stranger in ("second", "other"):
        assert "FileNotFoundError" in ask(workers[stranger], "answer = open('/tmp/mine').read()")


def test_a_siblings_socket_cannot_be_reached(workers: dict[str, templates.Worker]) -> None:
    code = "import socket; s = socket.socket(socket.AF_UNIX); answer = s.connect('/run/agent/{slot}/s')"
    assert ask(workers["first"], code.format(slot=1)) == "None"
    assert ask(workers["first"], code.format(slot=2)).startswith("PermissionError")


def test_no_privilege_is_left_or_gained(workers: dict[str, templates.Worker]) -> None:
    code = "answer = [l.split()[1] for l in open('/proc/self/status') if l.startswith('CapEff')][0]"
    assert [int(mask, 16) for mask in attempt(workers, code)] == [0, 0]
    assert int(unrestricted(code), 16) != 0
    assert ask(workers["first"], "import os; os.setuid(0)").startswith("PermissionError")
    assert (
        ask(workers["first"], "answer = open('/proc/self/status').read().split('NoNewPrivs:')[1].split()[0]") == "1"
    )


@pytest.mark.parametrize("which", ["first", "second"])
def test_every_thread_is_without_privileges(workers: dict[str, templates.Worker], which: str) -> None:
    statuses = [path.read_text() for path in Path(f"/proc/{workers[which].pid}/task").glob("*/status")]
    assert len(statuses) > 1  # grpc's, which inherit what the first one had when it started them
    uid = str(templates.UID_BASE + workers[which].spec.slot)
    for status in statuses:
        fields = dict(line.split(":", 1) for line in status.splitlines())
        assert set(fields["Uid"].split()) == {uid}
        assert [int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")] == [0] * 5
        assert fields["NoNewPrivs"].strip() == "1"


def test_no_mount_and_no_way_back_to_the_old_root(workers: dict[str, templates.Worker]) -> None:
    # In a mount namespace of its own, so that what succeeds cannot change this machine's.
    code = """
import ctypes
libc = ctypes.CDLL(None)
CLONE_NEWNS, MS_REC_PRIVATE = 0x20000, 0x44000
answer = (libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None)
          or libc.mount(b"none", b"/tmp", b"tmpfs", 0, None))
"""
    assert attempt(workers, code) == ("-1", "-1")
    assert unrestricted(code) == "0"
    assert "PermissionError" in ask(workers["first"], "import os; os.chroot('/tmp')")
    assert ask(workers["first"], "import ctypes; answer = ctypes.CDLL(None).umount2(b'/tmp', 2)") == "-1"


def test_only_its_own_descriptors_are_open(workers: dict[str, templates.Worker]) -> None:
    kinds = ask(
        workers["first"],
        """
import os
answer = ""
for number in os.listdir("/proc/self/fd"):
    if os.path.lexists(f"/proc/self/fd/{number}"):
        answer += os.readlink(f"/proc/self/fd/{number}") + " "
""",
    )
    assert "eventpoll" in kinds
    for foreign in ("cgroup", "template.log", "t.sock"):
        assert foreign not in kinds


def test_an_installation_below_tmp_is_not_hidden_by_what_workers_may_write(monkeypatch: pytest.MonkeyPatch) -> None:
    for paths, scratch in ((["/opt/p"], "/tmp"), (["/opt/p", "/tmp/checkout/.venv"], "/var/tmp")):
        monkeypatch.setattr(sandbox, "_python_paths", lambda paths=paths: paths)
        sandbox._scratch.cache_clear()
        assert sandbox._scratch() == (scratch, "/dev/shm")
    monkeypatch.undo()
    sandbox._scratch.cache_clear()
