"""How a worker is doing, by its own account: uptime, calls answered, memory, CPU."""

import os
import resource
import time
from pathlib import Path

from agentruntime._proto.uapi.v1 import text_generation_pb2

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Vitals:
    """Counts calls that were answered, and reads this process's memory and CPU time."""

    def __init__(self) -> None:
        self.requests_processed = 0
        self.begin()

    def begin(self) -> None:
        """The worker is ready now: uptime counts from here."""
        self._started = time.monotonic()
        self._last = (self._started, _cpu_seconds())

    def report(self) -> text_generation_pb2.HealthResponse:
        """The health document; CPU is counted since the last report."""
        now, cpu = time.monotonic(), _cpu_seconds()
        then, cpu_then = self._last
        self._last = (now, cpu)
        return text_generation_pb2.HealthResponse(
            status="healthy",
            uptime_seconds=now - self._started,
            requests_processed=self.requests_processed,
            memory_usage_bytes=_resident_bytes(),
            cpu_usage_percent=100 * (cpu - cpu_then) / (now - then) if now > then else 0.0,
        )


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _resident_bytes() -> int:
    # proc(5): the second figure of statm is the resident set, in pages.
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
