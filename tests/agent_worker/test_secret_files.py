"""A worker's secrets: in its files, and nowhere else."""

import json
import os
import socket
import textwrap
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import grpc
import pytest
from agentruntime import launch
from agentruntime._proto.uapi.v1 import text_generation_pb2, text_generation_pb2_grpc

from tests.agent_worker import templates
from tests.waiting import until

pytestmark = pytest.mark.integration
VALUE = "sk-0123456789"
# What a prompt asks for.
CODE = """
import os, resource, subprocess, sys
from agentruntime import Agent, secrets

class A(Agent):
    async def start(self):
        self.key = secrets.text("openai")
        print("printed", self.key, end="")
        sys.stdout.flush()
        print(" and", self.key)

    def generate(self, prompt, *, temperature, max_tokens):
        if prompt == "raise":
            raise ValueError(self.key)
        if prompt == "child":
            return str(subprocess.run(["cat", secrets.directory() / "openai"], check=True).returncode)
        return str(eval(prompt))
"""


@pytest.fixture
def base() -> Iterator[templates.Base]:
    with templates.base() as running:
        yield running


def load(base: templates.Base, code: str = CODE, **settings: object) -> templates.Template:
    bundle = templates.write_bundle(base.directory / "bundle", m=textwrap.dedent(code))
    return base.load("a", bundle, "m:A", secrets=True, **settings)


def ask(worker: templates.Worker, prompt: str) -> str:
    with grpc.insecure_channel(worker.address) as channel:
        stub = text_generation_pb2_grpc.TextGenerationServiceStub(channel)
        request = text_generation_pb2.GenerateTextRequest(prompt=prompt)
        return str(stub.GenerateText(request, timeout=10).text)


@pytest.mark.parametrize("spare", [False, True])
def test_a_worker_alone_has_them(base: templates.Base, spare: bool) -> None:
    template = load(base)
    waiting = template.spare() if spare else None
    worker = template.fork(spare=waiting, secrets={"openai": VALUE.encode(), "other": b"\0\xff"})
    assert worker.event() == {"event": "listening"}
    assert ask(worker, "secrets.text('openai'), secrets.read('other')") == str((VALUE, b"\0\xff"))
    modes = "[oct(os.stat(path).st_mode) for path in ('/run/secrets', '/run/secrets/openai')]"
    assert ask(worker, modes) == "['0o40500', '0o100400']"
    assert ask(worker, "os.stat('/run/secrets/openai').st_uid == os.getuid()") == "True"
    assert ask(worker, "open('/proc/mounts').read().count('tmpfs /run/secrets tmpfs rw,nosuid,nodev')") == "1"
    assert ask(worker, "resource.getrlimit(resource.RLIMIT_CORE)[1] <= 1") == "True"
    # The template and another worker of it are in other mount namespaces.
    assert not list(Path(f"/proc/{template.answer['pid']}/root/run/secrets").iterdir())
    assert VALUE.encode() not in Path(f"/proc/{worker.pid}/environ").read_bytes()
    links = [os.readlink(path) for path in Path(f"/proc/{worker.pid}/fd").iterdir()]  # noqa: PTH115 — also of pipes
    assert not [link for link in links if "memfd:secrets" in link]


def test_what_it_prints_has_no_value(base: templates.Base) -> None:
    template = load(base)
    for number, log_format in enumerate(("text", "json"), start=1):
        worker = template.fork(slot=number, secrets={"openai": VALUE.encode()}, log_format=log_format)
        assert worker.event() == {"event": "listening"}
        with pytest.raises(grpc.RpcError):
            ask(worker, "raise")
        until(partial(_holds, worker.log, "ValueError: [secret openai]"))
        assert "printed [secret openai] and [secret openai]" in worker.log.read_text()
        assert VALUE not in worker.log.read_text()


def _holds(log: Path, text: str) -> bool:
    return text in log.read_text()


def test_one_that_imports_after_the_fork_has_them_at_import(base: templates.Base) -> None:
    code = CODE.replace("class A", "AT_IMPORT = secrets.text('openai')\n\nclass A")
    template = load(base, code, import_in_worker=True)
    worker = template.fork(secrets={"openai": VALUE.encode()})
    assert worker.event() == {"event": "listening"}
    assert ask(worker, "AT_IMPORT") == VALUE


def test_under_a_pool_that_may_give_no_uids(base: templates.Base) -> None:
    worker = load(base, uid_base=0).fork(secrets={"openai": VALUE.encode()})
    assert worker.event() == {"event": "listening"}
    assert ask(worker, "secrets.text('openai'), oct(os.stat('/run/secrets/openai').st_mode)") == str(
        (VALUE, "0o100400")
    )


def test_without_a_view_of_its_own_they_are_beside_its_socket(base: templates.Base) -> None:
    template = load(base, isolated=False, uid_base=0)
    worker = template.fork(secrets={"openai": VALUE.encode()})
    assert worker.event() == {"event": "listening"}
    place = Path(template.spec.sandbox.workers_dir, "1", "secrets")
    assert ask(worker, "secrets.text('openai'), os.environ['UAPI_SECRETS_DIR']") == str((VALUE, str(place)))
    assert place.stat().st_mode & 0o777 == 0o700


def test_what_cannot_be_unsealed_ends_the_worker(base: templates.Base) -> None:
    template = load(base)
    request = launch.spec_message("fork", launch.WorkerSpec("a-01", "a", 1, 1, secrets=True))
    ours, theirs = socket.socketpair()
    with ours, theirs, (base.directory / "log").open("wb") as log, (base.directory / "empty").open("w+b") as nothing:
        assert template.control.ask(request, [log.fileno(), theirs.fileno(), nothing.fileno()])["ok"]
        theirs.close()
        told = json.loads(ours.makefile().readline())
    assert (told["event"], told["stage"]) == ("failed", "secrets")
    assert os.WEXITSTATUS(template.control.exit_of("a-01")) == 1


def test_what_a_child_prints_is_the_pools_to_find(base: templates.Base) -> None:
    worker = load(base).fork(secrets={"openai": VALUE.encode()})
    assert worker.event() == {"event": "listening"}
    assert ask(worker, "child") == "0"
    assert VALUE in worker.log.read_text()
