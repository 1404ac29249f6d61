"""Clients that others' toolchains make of our protos, and grpcurl, at the gateway's TCP port, without credentials."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import ROOT, Platform

pytestmark = pytest.mark.integration
GRPCURL = Path(sys.executable).parent / "grpcurl"
NODE = Path(__file__).parent / "node"
PROTOS = ROOT / "protos"

PLAIN_CLIENT = """
import json, sys
import grpc
from uapi.v1 import text_generation_pb2 as pb, text_generation_pb2_grpc
assert "agentruntime" not in sys.modules
with grpc.insecure_channel(sys.argv[1]) as channel:
    stub = text_generation_pb2_grpc.TextGenerationServiceStub(channel)
    metadata = (("x-uapi-agent", "echo"),)
    whole = stub.GenerateText(pb.GenerateTextRequest(prompt="plain python"), metadata=metadata, timeout=20)
    stream = stub.StreamText(pb.StreamTextRequest(prompt="plain python"), metadata=metadata, timeout=20)
    pieces = [piece.text for piece in stream]
print(json.dumps({"text": whole.text, "tokens_used": whole.tokens_used, "pieces": pieces}))
"""


def run(*argv: str, cwd: Path | None = None) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_plain_grpcio_tools(platform: Platform, tmp_path: Path) -> None:
    protos = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("uapi/v1/*.proto"))
    run(
        sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", f"--python_out={tmp_path}",
        f"--grpc_python_out={tmp_path}", *protos,
    )  # fmt: skip
    (tmp_path / "client.py").write_text(PLAIN_CLIENT)
    answer = json.loads(run(sys.executable, "client.py", platform.grpc_address, cwd=tmp_path))
    assert answer == {"text": "plain python", "tokens_used": 2, "pieces": ["plain", " python"]}


def test_nodes_grpc_js(platform: Platform) -> None:
    assert (NODE / "node_modules").is_dir(), "run `npm ci` in tests/integration/node, or `make test`"
    answer = json.loads(run("node", str(NODE / "client.js"), platform.grpc_address, "echo", "from node"))
    assert answer == {"text": "from node", "tokens_used": 2, "pieces": ["from", " node"]}
    unknown = json.loads(run("node", str(NODE / "client.js"), platform.grpc_address, "nobody", "hello"))
    assert unknown == {"code": 5, "details": "agent 'nobody' not found"}


def test_grpcurl_lists_describes_and_calls_everything(platform: Platform) -> None:
    def grpcurl(*arguments: str) -> str:
        return run(str(GRPCURL), "-plaintext", *arguments)

    example = ROOT / "examples" / "greeter"
    platform.agent("build", str(example), "-t", "greeter:1.0.0")
    platform.agent("run", "greeter:1.0.0")
    services = grpcurl(platform.grpc_address, "list").split()
    assert {"uapi.v1.TextGenerationService", "uapi.v1.AgentRegistry", "examples.greeter.v1.Greeter"} <= set(services)
    described = grpcurl(platform.grpc_address, "describe", "examples.greeter.v1.Greeter")
    assert "rpc Greet ( .examples.greeter.v1.GreetRequest )" in described
    # One agent serves it, so it need not be named.
    method = "examples.greeter.v1.Greeter/Greet"
    greeting = json.loads(grpcurl("-d", '{"name": "Ada"}', platform.grpc_address, method))
    assert greeting == {"text": "Hello, Ada!"}
    # Several serve this one.
    answer = json.loads(
        grpcurl(
            "-H", "x-uapi-agent: echo", "-d", '{"prompt": "hello"}', platform.grpc_address,
            "uapi.v1.TextGenerationService/GenerateText",
        )
    )  # fmt: skip
    assert answer["text"] == "hello"
    health = json.loads(grpcurl(platform.grpc_address, "grpc.health.v1.Health/Check"))
    assert health == {"status": "SERVING"}
    platform.agent("stop", "greeter")
