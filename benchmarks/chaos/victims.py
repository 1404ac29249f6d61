"""The processes of one platform, found by what it says of itself: nothing else is killed."""

import asyncio
import json
import os
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from agentruntime import processes
from agentruntime._proto.uapi.v1 import agent_pool_pb2
from agentruntime.home import Home

_GONE_TIMEOUT_MS = 5000


@dataclass(frozen=True)
class Process:
    """One process, named for good."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> "Process":
        """Raises LookupError: there is no such process."""
        started = processes.start_time(pid)
        if pid <= 1 or not started:
            raise LookupError(f"there is no process {pid}")
        return cls(pid, started)

    @property
    def alive(self) -> bool:
        return processes.alive(self.pid, self.started)

    async def kill(self) -> tuple[float, float]:
        """As kill -9 does; returns when, and when it had ended."""
        descriptor = os.pidfd_open(self.pid)
        try:
            if not self.alive:
                raise LookupError(f"process {self.pid} ended by itself")
            at = time.monotonic()
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            await asyncio.to_thread(_until_gone, descriptor)
            return at, time.monotonic()
        finally:
            os.close(descriptor)


def _until_gone(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not poll.poll(_GONE_TIMEOUT_MS):
        raise SystemExit(f"a killed process did not end within {_GONE_TIMEOUT_MS} ms")


def child(home: Home, name: str) -> Process:
    """The supervisor's child of that name: "pool" or "gateway".

    Raises:
        LookupError: it does not run.
    """
    record = json.loads(home.supervisor_file.read_text())
    pid = next((int(each["pid"]) for each in record["children"] if each["name"] == name), 0)
    return Process.of(pid)


def gateway(home: Home) -> Process:
    """The gateway that answers now.

    Raises:
        LookupError, OSError: there is none.
    """
    return Process.of(int(json.loads(home.gateway_file.read_text())["pid"]))


def envoy(home: Home) -> Process:
    """Raises LookupError: it does not run."""
    return Process.of(int(json.loads((home.run / "envoy.json").read_text())["pid"]))


def template(worker: agent_pool_pb2.Worker) -> Process:
    """The parent of a worker, if it lives.

    Raises:
        LookupError: it does not, or is no template of ours: it must have the worker's program in common.
    """
    parent = Process.of(processes.parent(worker.pid))
    if _program(parent.pid) != _program(worker.pid):
        raise LookupError(f"the template of {worker.worker_id} has ended")
    return parent


def _program(pid: int) -> Path:
    return Path(f"/proc/{pid}/exe").readlink()
