"""`python -m agentruntime.supervisor`: keeps the gateway and the pool of one runtime directory running.

`agent up` starts it in a session of its own, so it outlives its terminal. It knows its children by their command
lines and sockets only. One that ends before it ever answered is wrong, not unlucky: then all of them end, and why is
told to whoever started the supervisor, as one line of JSON on `--report-fd`. Later each is restarted, however often
it dies.
"""

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import agentruntime
from agentruntime import processes
from agentruntime.errors import DiskFull
from agentruntime.files import write_atomically
from agentruntime.home import Home
from agentruntime.listening import Listen

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 30.0
# A child that ran for so long was well: its next restart begins with the first delay again.
STABLE_AFTER_S = 10.0
# For a child to answer on its sockets after its first start.
START_TIMEOUT_S = 60.0
# For a child to end after SIGTERM: the pool gives its workers 10 seconds, and may have a thousand of them.
STOP_TIMEOUT_S = 40.0
# For a child that is to end, to become able to: until it listens it does not know what it will have to take along.
_READY_TO_END_S = 20.0
# For two children, each of which may have to be started once more to end.
LONGEST_STOP_S = 2 * 2 * (STOP_TIMEOUT_S + _READY_TO_END_S)
_POLL_S = 0.05


@dataclass(frozen=True)
class ChildSpec:
    """A process to keep running."""

    name: str
    argv: list[str]
    # It is up once all of them accept a connection.
    sockets: list[Path]
    # For one that only ends what a dead one has left; `argv` if None.
    argv_to_end: list[str] | None = None


@dataclass
class Child:
    """What has become of one."""

    spec: ChildSpec
    process: asyncio.subprocess.Process | None = None
    pid: int = 0
    # As `processes.start_time`; with the pid it names the process for good.
    start_time: float = 0.0
    restarts: int = 0
    came_up: bool = False
    # Length of its log when it was last started.
    log_offset: int = field(default=0, repr=False)


def restart_delay_s(quick_deaths: int) -> float:
    """Seconds before a restart, after so many deaths in a row that each came soon after a start."""
    return min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(quick_deaths, 16))


def children_of(home: Home, listen: Listen) -> list[ChildSpec]:
    """What runs, in the order in which it starts and ends: first the door closes, then the workers go."""
    python = [sys.executable, "-m"]
    gateway = [*python, "uapi_gateway"]
    # Port 0 is the port of the Envoy that runs, whichever that is.
    to_end = [*gateway, *replace(listen, grpc_port=0, http_port=0).argv()]
    return [
        ChildSpec("gateway", [*gateway, *listen.argv()], [home.control_socket, home.gateway_socket], to_end),
        ChildSpec("pool", [*python, "agent_pool"], [home.pool_socket]),
    ]


def failure_of(log_tail: str, status: int) -> str:
    """Why a child ended: by a signal, or as the last line it wrote says."""
    if status < 0:
        return signal.Signals(-status).name
    lines = [line.strip() for line in log_tail.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    try:
        entry = json.loads(last)
        last = str(entry.get("error") or entry["event"])
    except (ValueError, TypeError, KeyError, AttributeError):
        last = re.sub(r"^(error|uapi_gateway|agent_pool): ", "", last)
    if last and status == 1:
        # The status of every failure that says why: it adds nothing.
        return last
    return f"{last} (exit status {status})" if last else f"exit status {status}"


def end_left_overs(record: dict[str, Any]) -> set[str]:
    """Ends the children of a supervisor that died without them, so that new ones find their sockets free.

    Returns the names of those that ended in time, and so with all that they had started. Blocks.
    """
    left = [child for child in record.get("children", []) if processes.alive(child["pid"], child["start_time"])]
    for child in left:
        _signal(child, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    stubborn = left
    while stubborn and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        stubborn = [child for child in stubborn if processes.alive(child["pid"], child["start_time"])]
    for child in stubborn:
        _signal(child, signal.SIGKILL)
    return {child["name"] for child in left if child not in stubborn}


def _signal(child: dict[str, Any], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child["pid"], number)


def boot_id() -> str:
    """Names the time since the machine started: no process of an earlier one is left."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def read_record(home: Home) -> dict[str, Any]:
    """What the last supervisor of this runtime directory wrote of itself; {} if there was none."""
    try:
        record = json.loads(home.supervisor_file.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def lock_file(home: Home) -> Path:
    """Locked by flock(2) for as long as a supervisor lives, however it ends."""
    return home.run / "supervisor.lock"


def is_running(home: Home) -> bool:
    """Whether a supervisor holds the lock of this runtime directory."""
    try:
        with lock_file(home).open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except BlockingIOError:
        return True
    return False


class Supervisor:
    """Runs the children of one runtime directory until it is told to stop."""

    def __init__(self, home: Home, listen: Listen, specs: list[ChildSpec], report: TextIO | None = None) -> None:
        self._home = home
        self._listen = listen
        self._children = [Child(spec) for spec in specs]
        self._report = report
        self._stop = asyncio.Event()
        self._failure = ""

    async def run(self) -> int:
        """Returns the exit status: 0 when told to stop, 1 when a child could not start."""
        end_left_overs(read_record(self._home))
        keepers = [asyncio.create_task(self._keep(child)) for child in self._children]
        starting = asyncio.create_task(self._await_start())
        await self._stop.wait()
        starting.cancel()
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(starting, *keepers, return_exceptions=True)
        for child in self._children:
            await self._end(child)
        self._home.supervisor_file.unlink(missing_ok=True)
        if self._failure:
            self._say({"event": "failed", "error": self._failure})
            print(f"error: {self._failure}", file=sys.stderr, flush=True)
        return 1 if self._failure else 0

    def stop(self) -> None:
        """Makes `run` end the children, in order, and return."""
        self._stop.set()

    async def _keep(self, child: Child) -> None:
        quick_deaths = 0
        while True:
            started_at = time.monotonic()
            process = await self._start(child, child.spec.argv)
            self._write_record()
            up = asyncio.create_task(self._await_sockets(child))
            status = await process.wait()
            up.cancel()
            child.process, child.pid = None, 0
            if not child.came_up:
                self._fail(f"the {child.spec.name} did not start: {failure_of(self._tail(child), status)}")
                return
            quick_deaths = 0 if time.monotonic() - started_at >= STABLE_AFTER_S else quick_deaths + 1
            delay_s = restart_delay_s(quick_deaths)
            why = failure_of(self._tail(child), status)
            _say_line(f"the {child.spec.name} ended: {why}; restart in {delay_s:g} s")
            self._write_record()
            await asyncio.sleep(delay_s)
            child.restarts += 1

    async def _start(self, child: Child, argv: list[str]) -> asyncio.subprocess.Process:
        path = self._home.logs / f"{child.spec.name}.log"
        with path.open("ab") as log:
            child.log_offset = log.tell()
            child.process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # Where they keep no user's folder busy.
                cwd=self._home.root,
                env={**os.environ, "UAPI_HOME": str(self._home.root)},
            )
        child.pid, child.start_time = child.process.pid, processes.start_time(child.process.pid)
        return child.process

    async def _await_sockets(self, child: Child) -> None:
        await _until_accepting(child.spec.sockets)
        child.came_up = True

    async def _await_start(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not all(child.came_up for child in self._children):
            if time.monotonic() > deadline:
                silent = next(child.spec.name for child in self._children if not child.came_up)
                self._fail(
                    f"the {silent} does not answer after {START_TIMEOUT_S:g} s; see its log in the logs folder"
                )
                return
            await asyncio.sleep(_POLL_S)
        self._say({"event": "up"})

    async def end_orphans(self, except_of: set[str]) -> None:
        """Ends what children that died have left, but for those named."""
        for child in self._children:
            if child.spec.name not in except_of:
                child.came_up = True
                await self._end(child)

    async def _end(self, child: Child) -> None:
        """Ends a child with all that it has started.

        One that died, or has to be killed, leaves that behind: Envoy, or workers. Its successor takes it over, and
        along when it ends.
        """
        if await self._ended_well(child) or not child.came_up:
            return
        _say_line(f"the {child.spec.name} is started once more to end what it has left")
        await self._start(child, child.spec.argv_to_end or child.spec.argv)
        if not await self._ended_well(child):
            _say_line(f"the {child.spec.name} did not end well, and may have left processes; see its log")

    async def _ended_well(self, child: Child) -> bool:
        if child.process is None:
            return False
        await self._await_able_to_end(child, child.process)
        if child.process.returncode is None:
            child.process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await child.process.wait()
        except TimeoutError:
            _say_line(f"the {child.spec.name} did not end within {STOP_TIMEOUT_S:g} s and was killed")
            child.process.kill()
        return await child.process.wait() == 0

    async def _await_able_to_end(self, child: Child, process: asyncio.subprocess.Process) -> None:
        accepting = asyncio.create_task(_until_accepting(child.spec.sockets))
        ended = asyncio.create_task(process.wait())
        await asyncio.wait((accepting, ended), timeout=_READY_TO_END_S, return_when=asyncio.FIRST_COMPLETED)
        for waiter in (accepting, ended):
            waiter.cancel()
        await asyncio.gather(accepting, ended, return_exceptions=True)

    def _fail(self, why: str) -> None:
        self._failure = self._failure or why
        self._stop.set()

    def _tail(self, child: Child) -> str:
        with (self._home.logs / f"{child.spec.name}.log").open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(child.log_offset, end - 4096))
            return log.read().decode(errors="replace")

    def _write_record(self) -> None:
        record = {
            "pid": os.getpid(),
            "start_time": processes.start_time(os.getpid()),
            "boot_id": boot_id(),
            "version": agentruntime.__version__,
            **asdict(self._listen),
            "children": [
                {
                    "name": child.spec.name,
                    "pid": child.pid,
                    "start_time": child.start_time,
                    "restarts": child.restarts,
                }
                for child in self._children
                if child.process is not None
            ],
        }
        try:
            write_atomically(self._home.supervisor_file, json.dumps(record).encode())
        except (OSError, DiskFull) as error:
            # A full disk must not end the keeping. What reads the record checks start times, and finds an old one so.
            _say_line(f"its record could not be written: {error}")

    def _say(self, event: dict[str, Any]) -> None:
        if self._report is None:
            return
        try:
            self._report.write(json.dumps(event) + "\n")
            self._report.close()
        except BrokenPipeError:
            _say_line("whoever started this did not wait for the platform to be up")
        self._report = None


async def _until_told(supervisor: Supervisor) -> int:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, supervisor.stop)
    # A terminal that closes is no reason to end.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return await supervisor.run()


def _say_line(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}", file=sys.stderr, flush=True)


async def _until_accepting(sockets: list[Path]) -> None:
    while not all(map(accepts, sockets)):  # noqa: ASYNC110 — because nothing tells when they listen
        await asyncio.sleep(_POLL_S)


def accepts(path: Path) -> bool:
    """Whether somebody listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return False
    return True


def main(argv: list[str] | None = None) -> int:
    """Runs until SIGTERM; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m agentruntime.supervisor", description=__doc__)
    Listen.add_flags(parser)
    parser.add_argument("--report-fd", type=int)
    args = parser.parse_args(argv)
    home = Home.default()
    home.create()
    report = os.fdopen(args.report_fd, "w") if args.report_fd is not None else None
    if report is not None:
        # The children must not hold it open: its end tells that the supervisor is gone.
        os.set_inheritable(report.fileno(), False)
    with lock_file(home).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"error: a supervisor runs already for {home.root}", file=sys.stderr)
            return 1
        listen = Listen.of(vars(args))
        os.chdir(home.root)
        return asyncio.run(_until_told(Supervisor(home, listen, children_of(home, listen), report)))


if __name__ == "__main__":
    sys.exit(main())
