"""One worker's process: what belongs to it, how its end is noticed, and what is done to it."""

import asyncio
import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agentruntime import errors, processes, units

from agent_pool import usage
from agent_pool.cgroups import detect
from agent_pool.cgroups.base import Group, Limits
from agent_pool.drivers import doors
from agent_pool.drivers.base import Exit, Launch, Running, Stats
from agent_pool.drivers.reports import MOST_BYTES, Reports

# A worker gets this much on top of its grace period to end by itself.
_STOP_MARGIN_S = 1.0
# A process leaves its control groups a moment before it is known to have ended.
_ENDING_S = 0.1


@dataclass
class WorkerProcess:
    """From before its fork until nothing of it is left."""

    launch: Launch
    slot: int
    # None where nothing is capped.
    group: Group | None
    # That holds its socket.
    directory: Path
    # Where its log stood when it was started, in bytes.
    log_start: int
    # The versions of the secrets that it has, by their names.
    secrets: Mapping[str, str] = field(default_factory=dict)
    pid: int = 0
    pidfd: int = -1
    reports: Reports = field(default_factory=lambda: Reports(None))
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    exit: asyncio.Task[Exit] | None = None

    def attach(
        self, pid: object, parent: int | None, tell_exit: Coroutine[Any, Any, Exit], *, container: str = ""
    ) -> None:
        """Watches over the process, which may be signalled from now on.

        Args:
            pid: its own, as somebody said.
            parent: the template that said so, and must be its parent, because it has run the agent's code: a pool
                that is root would signal whatever process it names. None if the pool knows by itself.
            tell_exit: comes to how it ended, once `ended` is set.
            container: the id of that whose process it must be, because its engine may count pids of its own.

        Raises:
            AgentFailed: it is another's process.
            FailedPrecondition: it is not the container's.
        """
        try:
            self._open(pid, parent, container)
        except errors.AgentError:
            tell_exit.close()
            raise
        self.exit = asyncio.create_task(tell_exit)

    def _open(self, pid: object, parent: int | None, container: str) -> None:
        agent = self.launch.revision.agent
        if not isinstance(pid, int) or pid <= 1:
            raise errors.AgentFailed(f"the template of '{agent}' tells no pid")
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self.ended.set()
        else:
            # What the descriptor names cannot become another; so look at the process only now.
            if parent is not None and processes.parent(pid) not in (processes.GONE, parent):
                os.close(pidfd)
                raise errors.AgentFailed(
                    f"the template of '{agent}' gave process {pid} for a worker, which is not one of its own"
                )
            if container and not detect.is_in(pid, container) and not _ended(pidfd):
                os.close(pidfd)
                raise errors.FailedPrecondition(
                    f"the container engine says that a worker of '{agent}' is process {pid}, which is another's "
                    "here: it counts processes of its own; run the platform beside the engine, not in a container of "
                    "its own pids, or run agents with --native"
                )
            self.pidfd = pidfd
            asyncio.get_running_loop().add_reader(pidfd, self._on_end)
        self.pid = pid

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self.pidfd)
        os.close(self.pidfd)
        self.ended.set()

    async def until_listening(self, failure: Callable[[Exit], errors.AgentFailed]) -> None:
        """Returns when the worker says that it listens.

        Raises:
            AgentFailed: it ended before (then as `failure` puts it), or says what a worker does not say.
        """
        loop = asyncio.get_running_loop()
        reports = self.reports
        assert reports.connection is not None
        assert self.exit is not None
        woken = asyncio.Event()
        ending = asyncio.create_task(self.ended.wait())
        ending.add_done_callback(lambda _: woken.set())
        loop.add_reader(reports.connection, woken.set)
        try:
            while True:
                ended = self.ended.is_set()
                reports.hear()
                if reports.listening:
                    return
                if ended:
                    raise failure(await asyncio.shield(self.exit))
                if reports.too_much:
                    raise errors.AgentFailed(
                        f"worker {self.launch.worker_id} said more than {units.format_size(MOST_BYTES)} to the "
                        "pool before it was ready; an agent must leave that socket alone"
                    )
                if reports.hung_up:
                    loop.remove_reader(reports.connection)
                woken.clear()
                await woken.wait()
        finally:
            loop.remove_reader(reports.connection)
            ending.cancel()

    async def wait(self) -> Exit:
        """How it ended, once it has."""
        assert self.exit is not None
        return await asyncio.shield(self.exit)

    async def stop(self, grace_s: float) -> Exit:
        """Lets it finish its calls for up to `grace_s`, then kills it; returns when it has ended."""
        if self.exit is None:
            return Exit("it never ran")
        knows = self.ask_to_drain(grace_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s + (_STOP_MARGIN_S if knows else 0)):
                return await self.wait()
        if not knows:
            self.terminate()
        try:
            async with asyncio.timeout(0 if knows else _STOP_MARGIN_S):
                return await self.wait()
        except TimeoutError:
            self.kill()
            await self.wait()
            return Exit(f"killed, because it had not ended {grace_s:g}s after it was asked to")

    async def debugger(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to its debugger.

        Raises:
            FailedPrecondition: the pool has no channel to it.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            if not self.reports.hand_to_debugger(theirs):
                ours.close()
                worker_id = self.launch.worker_id
                raise errors.FailedPrecondition(
                    f"the pool has no channel to worker '{worker_id}', as after a restart of the pool; "
                    f"`agent restart {worker_id}` makes it one that can be debugged"
                )
        return await asyncio.open_unix_connection(sock=ours)

    def close_door(self, uid: int) -> None:
        """Closes the directory of its socket, now that it listens. See `doors.close`.

        Args:
            uid: as which it runs.

        Raises:
            AgentFailed: there is something else, or nothing.
        """
        try:
            doors.close(self.directory, self.slot, uid)
        except errors.AgentFailed as error:
            raise errors.AgentFailed(f"worker {self.launch.worker_id} failed: {error.message}") from None

    def ask_to_drain(self, grace_s: float) -> bool:
        """False where the worker will not know when its grace is over, and has to be told by `terminate`."""
        if self.reports.ask_to_drain(grace_s):
            return True
        # Taken over from a pool that died: the signal says the same, with the grace it was started with.
        self.terminate()
        return False

    def terminate(self) -> None:
        """Asks it to drain; once more, to be done with draining."""
        if not self.ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)

    def kill(self) -> None:
        """The process, and all that it started."""
        if self.group is not None:
            self.group.kill()
        if self.pid and not self.ended.is_set():
            if self.group is None:
                with contextlib.suppress(ProcessLookupError):
                    # The session that the worker made for itself.
                    os.killpg(self.pid, signal.SIGKILL)
            # Also with one: it may not have joined it yet.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def limit(self, limits: Limits) -> None:
        """Moves its caps; if the kernel refuses one, all are as they were. Blocks.

        Raises:
            FailedPrecondition: it uses more memory than that, or nothing caps it here.
        """
        if self.group is None:
            raise errors.FailedPrecondition(
                f"nothing caps worker {self.launch.worker_id} here; `agent doctor` says why"
            )
        self.check_room(limits)
        try:
            self.group.limit(limits, lift=True)
        except OSError as error:
            self.group.limit(self.launch.revision.limits, lift=True)
            raise errors.FailedPrecondition(f"the kernel refused the new limits: {error.strerror}") from None
        self.launch = replace(self.launch, revision=replace(self.launch.revision, limits=limits))

    def check_room(self, limits: Limits) -> None:
        """Raises FailedPrecondition if it uses more memory than it would have."""
        used = self.group.counters().memory_bytes if self.group else 0
        if limits.memory_bytes is not None and used > limits.memory_bytes:
            raise errors.FailedPrecondition(
                f"{units.format_size(used)} of memory are in use, more than the new limit of "
                f"{units.format_size(limits.memory_bytes)}; ask for more, or restart with less to do"
            )

    def cpu_s(self) -> float:
        if not self.pid:
            return 0.0
        return (self.group.cpu_s() if self.group else 0.0) or usage.cpu_s(self.pid)

    def stats(self, *, share: bool) -> Stats:
        return usage.stats(self.pid, self.group, self.launch.gpus, share=share) if self.pid else Stats()

    def running(self) -> Running:
        """As the pool keeps it, to find it again."""
        return Running(
            key=self.launch.key,
            pid=self.pid,
            address=f"unix:{self.directory / 's'}",
            handle={
                "pid": self.pid,
                "start_time": processes.start_time(self.pid),
                "group": self.group.name if self.group else "",
                "slot": self.slot,
                "secrets": dict(self.secrets),
            },
        )


def _ended(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], _ENDING_S)[0])
