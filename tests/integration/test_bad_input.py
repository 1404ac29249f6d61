"""The obvious mistakes: each gets the right status and one clear sentence, at once, and nothing is left running."""

import socket
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from agentruntime import Client, errors

from tests.integration.conftest import Platform

pytestmark = pytest.mark.integration
INVALID, NOT_FOUND, EXHAUSTED, PRECONDITION = 10 + 3, 10 + 5, 10 + 8, 10 + 9


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run", "echo:latest", "--name", "bad", "--memory", "2 gigs"], INVALID, "'2 gigs' is not a size"),
        (["run", "echo:latest", "--name", "bad", "--cpu", "lots"], INVALID, "'lots' is not a CPU share"),
        (["run", "echo:latest", "--name", "bad", "--memory", "1MB"], INVALID, "1MB"),
        (["run", "echo:latest", "--name", "bad", "--memory", "900TB"], EXHAUSTED, "free"),
        (["run", "echo:latest", "--name", "bad", "--cpu", "500"], EXHAUSTED, "free"),
        (["run", "echo:9.9", "--name", "bad"], NOT_FOUND, "latest"),
        (["run", "nothing-here"], NOT_FOUND, "nothing-here"),
        (["run", "Bad_Name:1"], INVALID, "'Bad_Name' is not an agent name"),
        (["run", "echo:latest", "--name", "a.b"], INVALID, "'a.b' is not an agent name"),
        (["run", "mock-ai:latest", "--name", "echo"], PRECONDITION, "agent update echo"),
        (["call", "nobody", "hello"], NOT_FOUND, "agent 'nobody' not found"),
        (["call", "echo", "--service", "Nope", "--method", "M", "--data", "{}"], 10 + 12, "Nope"),
        (["call", "echo", "--service", "TextGenerationService", "--method", "Nope", "--data", "{}"], 10 + 12, "Nope"),
        (["stop", "nobody"], NOT_FOUND, "nobody"),
        (["logs", "nobody"], NOT_FOUND, "nobody"),
        (["rmi", "echo:latest"], PRECONDITION, "built in"),
    ],
)
def test_one_sentence(platform: Platform, arguments: list[str], code: int, said: str) -> None:
    before = platform.json("ps")
    started = time.monotonic()
    done = platform.agent(*arguments, code=code)
    assert time.monotonic() - started < 5
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert [row["worker_id"] for row in platform.json("ps")] == [row["worker_id"] for row in before]


def test_gpus_that_are_not_there(platform: Platform) -> None:
    gpus = platform.json("doctor")
    assert gpus is not None
    done = platform.agent("run", "echo:latest", "--name", "with-gpu", "--gpu", "1", code=PRECONDITION)
    assert "this machine has 0 GPUs, 1 requested" in done.stderr
    assert platform.workers("with-gpu") == []


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import no_such_library", "No module named 'no_such_library'"),
        ("raise RuntimeError('broken at import')", "RuntimeError: broken at import"),
        (
            "from agentruntime import Agent\nclass MyAgent(Agent):\n"
            "    def start(self): raise RuntimeError('broken at start')\n    def generate(self, p, **_): return p\n",
            "RuntimeError: broken at start",
        ),
        (
            "import time\nfrom agentruntime import Agent\nclass MyAgent(Agent):\n"
            "    def start(self): time.sleep(600)\n    def generate(self, p, **_): return p\n",
            "2s",
        ),
        ("import time\ntime.sleep(600)\n", "2s"),
        ("import os\nos._exit(7)\n", "ended"),
    ],
)
def test_an_agent_that_fails_says_why_and_leaves_nothing(
    platform: Platform, project: Path, code: str, said: str
) -> None:
    (project / "agent.yaml").write_text(
        "name: failing\nversion: 1.0.0\nentrypoint: agent:MyAgent\nhealth: {start_timeout: 2s}\n"
    )
    (project / "agent.py").write_text(code)
    platform.agent("build", str(project))
    done = platform.agent("run", "failing:1.0.0", code=PRECONDITION)
    assert said in done.stderr
    assert platform.workers("failing") == []
    platform.agent("rmi", "failing:1.0.0")


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ("name: a\nversion: 1.0.0\n", "entrypoint"),
        ("name: Not_A_Label\nversion: 1.0.0\nentrypoint: agent:A\n", "is not an agent name"),
        ("name: a\nversion: 1.0.0\nentrypoint: agent:A\nconcurrency: many\n", "concurrency"),
        ("name: a\nversion: 1.0.0\nentrypoint: agent:A\nresources: {memory: 2 gigs}\n", "'2 gigs' is not a size"),
        ("name: [\n", "is not YAML"),
        ("name: a\nversion: 1.0.0\nentrypoint: missing:A\n", "missing"),
    ],
)
def test_a_manifest_with_mistakes_is_not_built(platform: Platform, project: Path, manifest: str, said: str) -> None:
    (project / "agent.yaml").write_text(manifest)
    (project / "agent.py").write_text("class A: pass\n")
    assert said in platform.agent("build", str(project), code=INVALID).stderr


def test_a_registration_with_a_dead_endpoint(platform: Platform) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening
        port = taken.getsockname()[1]
        token = platform.home.token()
        with (
            Client(platform.grpc_address, token) as client,
            pytest.raises(errors.FailedPrecondition, match=str(port)),
        ):
            client.register_agent(
                {
                    "agent_id": "dead-01",
                    "services": ["TextGenerationService"],
                    "endpoint": f"localhost:{port}",
                    "capabilities": ["text-generation"],
                }
            )
        with pytest.raises(errors.AgentNotFound), Client(platform.grpc_address, token) as client:
            client.generate_text("dead-01", "hello")


def test_a_message_over_the_limit(platform: Platform) -> None:
    with Client(platform.grpc_address) as client:
        with pytest.raises(errors.ResourceExhausted, match="4194304"):
            client.generate_text("echo", "x" * (5 * 2**20))
        assert client.generate_text("echo", "x" * (3 * 2**20)).text == "x" * (3 * 2**20)


def test_malformed_frames_hurt_nobody(platform: Platform) -> None:
    host, port = platform.grpc_address.rsplit(":", 1)
    noises = (
        b"\x00" * 64,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 512,
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01",
    )
    for noise in noises:
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(noise)
    with Client(platform.grpc_address) as client:
        assert client.generate_text("echo", "still here").text == "still here"
    with grpc.insecure_channel(platform.grpc_address) as channel:
        call: Any = channel.unary_unary("/uapi.v1.TextGenerationService/GenerateText")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff\xff\xff", metadata=(("x-uapi-agent", "echo"),), timeout=5)
        assert caught.value.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
        assert b"hi" in call(b"\x0a\x02hi", metadata=(("x-uapi-agent", "echo"),), timeout=10**8)
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\x0a\x02hi", metadata=(("x-uapi-agent", "echo"),), timeout=-1)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert platform.workers("echo")[0]["restarts"] == 0
