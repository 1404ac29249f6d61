"""Processes for the gateway's tests: workers that can be killed, and the gateway itself."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from agentruntime._proto.uapi.v1 import text_generation_pb2 as text
from agentruntime._proto.uapi.v1 import text_generation_pb2_grpc
from agentruntime.home import Home
from grpc import aio

from tests.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def private_home() -> Iterator[Home]:
    """A runtime directory with a path so short that its sockets lie inside it, and go with it."""
    with tempfile.TemporaryDirectory(prefix="uapi-gw-") as directory:
        home = Home(Path(directory))
        home.create()
        yield home


@contextlib.contextmanager
def worker_process(address: str, name: str) -> Iterator[subprocess.Popen[str]]:
    """An echo worker that can be killed."""
    argv = [sys.executable, "-m", "tests.uapi_gateway.echo_service", address, name]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


class Gateway:
    """A gateway process with a runtime directory of its own."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self, **environment: str) -> None:
        """Starts it; without other settings callers without a credential may call, as most tests do."""
        settings = {"UAPI_GATEWAY_DRAIN_S": "0.5", "UAPI_GATEWAY_ANONYMOUS": "call", **environment}
        self._output = (self.home.root / "gateway.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "uapi_gateway", "--grpc-port", "0", "--http-port", "0"],
            env={**os.environ, "UAPI_HOME": str(self.home.root), **settings},
            cwd=ROOT,
            stdout=self._output,
            stderr=self._output,
        )
        await eventually(self._ready, timeout_s=20)

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.home.root / "gateway.log").read_text()[-3000:]
        return self.file.exists() and self.announced()["pid"] == self.process.pid

    @property
    def file(self) -> Path:
        return self.home.run / "gateway.json"

    def announced(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.file.read_text())
        return content

    @property
    def address(self) -> str:
        return str(self.announced()["grpc_address"])

    @property
    def http_address(self) -> str:
        return str(self.announced()["http_address"])

    @property
    def envoy_pid(self) -> int:
        return int(json.loads((self.home.run / "envoy.json").read_text())["pid"])

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self._output.close()

    def stop(self) -> None:
        """Ends the gateway, and Envoy even if the gateway could not."""
        assert self.process is not None
        envoy_file = self.home.run / "envoy.json"
        envoy_pid = self.envoy_pid if envoy_file.exists() else 0
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        finally:
            self.process.kill()
            self._output.close()
            if envoy_pid and psutil.pid_exists(envoy_pid):
                os.kill(envoy_pid, signal.SIGKILL)

    def channel(self, *, unix: bool = False) -> aio.Channel:
        target = f"unix:{self.home.gateway_socket}" if unix else self.address
        # A pool of its own, for another test may have used the same port.
        return aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])


async def generate(
    channel: aio.Channel, prompt: str, *metadata: tuple[str, str], agent: str = "", timeout_s: float | None = 5.0
) -> str:
    """One GenerateText call; the text of its answer."""
    if agent:
        metadata = (*metadata, ("x-uapi-agent", agent))
    stub = text_generation_pb2_grpc.TextGenerationServiceStub(channel)
    answer = await stub.GenerateText(text.GenerateTextRequest(prompt=prompt), metadata=metadata, timeout=timeout_s)
    return answer.text
