"""The entrypoint of a container, outside of one."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.agent_worker import templates

pytestmark = pytest.mark.integration
AGENT = """
import os
from agentruntime import Agent
print("noise at import")
if os.environ.get("FAIL"):
    raise RuntimeError("no luck")
if os.environ.get("WHO") not in ("author", None):
    raise RuntimeError(os.environ["WHO"])
class A(Agent):
    def generate(self, prompt, *, temperature, max_tokens):
        return prompt
"""
# /agent is a container's.
PROGRAM = """
import sys
from agent_worker import container
container.BUNDLE = sys.argv[1]
sys.exit({call})
"""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    made = templates.write_bundle(tmp_path / "b", m=AGENT)
    (made / "app" / "agent.yaml").write_text("name: a\nversion: 1.0.0\nentrypoint: m:A\nenv: {WHO: author}\n")
    return made


def describe(bundle: Path, **env: str) -> tuple[int, dict[str, object]]:
    argv = [sys.executable, "-c", PROGRAM.format(call="container.describe()"), str(bundle)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, json.loads(done.stdout)


def test_a_description_is_one_line_whatever_the_agent_prints(bundle: Path) -> None:
    status, answer = describe(bundle)
    assert (status, answer["services"]) == (0, ["uapi.v1.TextGenerationService"])
    assert answer["descriptors"]


def test_a_description_of_what_does_not_import(bundle: Path) -> None:
    status, answer = describe(bundle, FAIL="1")
    assert (status, answer["error"]) == (1, "RuntimeError: no luck")
    status, answer = describe(bundle, WHO="you")  # which goes before the author's
    assert (status, answer["error"]) == (1, "RuntimeError: you")
    assert "m.py" in str(answer["traceback"])
    (bundle / "app" / "agent.yaml").unlink()
    status, answer = describe(bundle)
    assert (status, answer["traceback"]) == (1, "")
    assert "agent.yaml" in str(answer["error"])


def test_without_a_pool_it_serves_on_a_port_until_sigterm(bundle: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = [sys.executable, "-c", PROGRAM.format(call=f"container.serve({port})"), str(bundle)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                health: Any = health_pb2_grpc.HealthStub(channel)  # its types lack the methods
                answer = health.Check(health_pb2.HealthCheckRequest(), timeout=60, wait_for_ready=True)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()


def test_a_worker_without_its_pool_ends_with_a_sentence(bundle: Path) -> None:
    call = "sys.argv.append('--worker') or sys.argv.pop(1) and container.main()"
    argv = [sys.executable, "-c", PROGRAM.format(call=call), str(bundle)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "no pool waits at /run/agent/control" in done.stderr
