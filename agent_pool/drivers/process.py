"""The process driver: workers are forked from templates, inside control groups, and serve on Unix sockets."""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agentruntime import errors, launch, log, processes, units
from agentruntime.home import Home
from agentruntime.launch import WorkerSpec

from agent_pool import gpus, usage
from agent_pool.cgroups.base import Counters, Group, Hierarchy, Limits
from agent_pool.drivers import doors, exits, spares
from agent_pool.drivers.base import Driver, Enforcement, Exit, Launch, Prepared, Revision, Running, Stats
from agent_pool.drivers.control import ControlClosed, Message
from agent_pool.drivers.reports import MOST_BYTES, Reports
from agent_pool.drivers.slots import Slots
from agent_pool.drivers.spares import Spare, Spares
from agent_pool.drivers.templates import ImageTemplate, Templates
from agent_pool.drivers.venvs import Venvs
from agent_pool.logs import LogStore

# Between the end of a process and its template's word on how it ended.
_STATUS_TIMEOUT_S = 1.0
# A worker gets this much on top of its grace period to end by itself.
_STOP_MARGIN_S = 1.0
_KILL_TIMEOUT_S = 5.0
_log = log.get("agent_pool.process")


@dataclass
class _Process:
    """One worker's process and all that belongs to it."""

    launch: Launch
    slot: int
    group: Group | None
    directory: Path
    # Where its log stood when it was started, in bytes.
    log_start: int
    pid: int = 0
    pidfd: int = -1
    reports: Reports = field(default_factory=lambda: Reports(None))
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    exit: asyncio.Task[Exit] | None = None


class ProcessDriver(Driver):
    """Workers of one pool on this machine.

    Its hierarchy is prepared; None caps nothing.
    """

    name = "process"

    def __init__(
        self, home: Home, logs: LogStore, hierarchy: Hierarchy | None, environment: Mapping[str, str]
    ) -> None:
        self._logs = logs
        self._hierarchy = hierarchy
        self._workers: dict[str, _Process] = {}
        self._venvs = Venvs(environment)
        self._templates = Templates(home, logs, hierarchy, environment)
        self._slots = Slots()
        self._spares = Spares(hierarchy, self._slots)
        self._sockets = home.run / "w"

    def enforcement(self) -> list[Enforcement]:
        capped = self._hierarchy.enforceable if self._hierarchy else frozenset()
        how = self._hierarchy.name if self._hierarchy else ""
        why = "no control group of this machine may be written; run as root, or with systemd's Delegate=yes"
        found = [
            Enforcement(what, what in capped, how if what in capped else why) for what in ("memory", "cpu", "pids")
        ]
        root = os.geteuid() == 0
        refused = self._templates.sandbox_refused()
        uid = "a uid of its own for each worker" if root else "the platform's own uid: run as root for one each"
        return [
            *found,
            Enforcement("network", not refused, refused or "a network namespace for each worker"),
            Enforcement("filesystem", not refused, refused or "a read-only view of what a worker needs"),
            Enforcement("process", root and not refused, refused or uid),
        ]

    async def check(self, revision: Revision) -> None:
        await self._venvs.check(revision.venv, debug=revision.debug)

    async def prepare(self, revision: Revision) -> Prepared:
        return (await self._templates.get(revision)).prepared

    async def rest(self, revision: Revision) -> None:
        await self._spares.drop(revision.key)

    async def release(self, revision: Revision) -> None:
        await self._spares.drop(revision.key)
        await self._templates.release(revision.key)
        # Another revision's template has this very directory in its view of the file system.
        if not any(key.rpartition("@")[0] == revision.agent for key in self.warm()):
            with contextlib.suppress(OSError):  # workers still have their sockets there
                self._templates.workers_dir(revision.agent).rmdir()

    async def start(self, launch_: Launch) -> Running:
        revision = launch_.revision
        template = await self._templates.get(revision)
        spare = self._spares.take(revision.key, template.channel)
        process = self._place(launch_, spare)
        self._workers[launch_.worker_id] = process
        try:
            answer = await self._fork(template, process, spare)
        except ControlClosed:
            raise errors.Unavailable(f"the template of '{revision.agent}' ended; try again") from None
        if not answer.get("ok"):
            raise errors.AgentFailed(f"worker {launch_.worker_id} could not be forked: {answer.get('error')}")
        self._attach(process, answer.get("pid"), template)
        await self._until_listening(process)
        self._close_door(process, template)
        self._spares.renew(revision, template.channel, template.pid)
        return self._running(process)

    async def _fork(self, template: ImageTemplate, process: _Process, spare: Spare | None) -> Message:
        """Has the template make the worker, out of the spare if there is one."""
        launch_ = process.launch
        ours, theirs = socket.socketpair()
        process.reports = Reports(ours)
        descriptors = [self._logs.open(launch_.revision.agent, launch_.worker_id), theirs.detach()]
        request = launch.spec_message("fork", _worker_spec(launch_, process.slot))
        try:
            # One that was just killed may still be known to its template, and would end as the worker.
            if spare is not None and processes.start_time(spare.pid):
                answer = await template.channel.request({**request, "spare": spare.pid}, descriptors)
                if answer.get("ok"):
                    return answer
                # It was killed while it waited; its group is as good as new.
            if process.group is not None:
                descriptors += process.group.open_procs()
            return await template.channel.request(request, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    async def wait(self, worker_id: str) -> Exit:
        process = self._workers[worker_id]
        assert process.exit is not None
        return await asyncio.shield(process.exit)

    async def stop(self, worker_id: str, grace_s: float) -> Exit:
        process = self._workers.get(worker_id)
        if process is None or process.exit is None:
            return Exit("it never ran")
        self._ask_to_drain(process, grace_s)
        try:
            return await asyncio.wait_for(self.wait(worker_id), grace_s + _STOP_MARGIN_S)
        except TimeoutError:
            self._kill(process)
            await self.wait(worker_id)
            return Exit(f"killed, because it had not ended {grace_s:g}s after it was asked to")

    async def limit(self, worker_id: str, limits: Limits) -> None:
        process = self._workers.get(worker_id)
        if process is None or process.group is None:
            raise errors.FailedPrecondition(f"nothing caps worker {worker_id} here; `agent doctor` says why")
        await asyncio.to_thread(_move_caps, process.group, process.launch.revision.limits, limits)
        process.launch = replace(process.launch, revision=replace(process.launch.revision, limits=limits))
        # It has the old ones.
        await self._spares.drop(process.launch.revision.key)

    async def debug(self, worker_id: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        process = self._workers.get(worker_id)
        ours, theirs = socket.socketpair()
        with theirs:
            if process is None or not process.reports.hand_to_debugger(theirs):
                ours.close()
                raise errors.FailedPrecondition(
                    f"the pool has no channel to worker '{worker_id}', as after a restart of the pool; "
                    f"`agent restart {worker_id}` makes it one that can be debugged"
                )
        return await asyncio.open_unix_connection(sock=ours)

    async def destroy(self, worker_id: str) -> None:
        process = self._workers.get(worker_id)
        if process is None:
            return
        try:
            self._kill(process)
            if process.pid:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.ended.wait(), _KILL_TIMEOUT_S)
            if process.group is not None:
                await asyncio.to_thread(process.group.remove)
            await asyncio.to_thread(shutil.rmtree, process.directory, ignore_errors=True)
            if process.exit is not None:
                await asyncio.wait([process.exit])
        finally:
            # Also what ends a worker whose pid the pool never heard: it ends with this socket until it listens.
            process.reports.close()
        self._templates.forget_exit(process.pid)
        if self._workers.get(worker_id) is process:
            del self._workers[worker_id]
            self._slots.free(process.launch.revision.agent, process.slot)

    async def inspect(self, worker_id: str) -> Running | None:
        process = self._workers.get(worker_id)
        return self._running(process) if process and process.pid and not process.ended.is_set() else None

    async def recover(
        self,
        revisions: Mapping[str, Prepared],
        launches: Mapping[str, Launch],
        handles: Mapping[str, Mapping[str, Any]],
    ) -> list[Running]:
        await self._templates.recover(revisions)
        adopted = []
        for worker_id, each in launches.items():
            handle = handles.get(worker_id)
            if handle and processes.alive(handle["pid"], handle.get("start_time", 0.0)):
                process = self._adopt(each, handle)
                if process is not None:
                    adopted.append(self._running(process))
        await asyncio.to_thread(self._sweep)
        return adopted

    def warm(self) -> Collection[str]:
        return self._templates.keys()

    def cpu_s(self, worker_id: str) -> float:
        process = self._workers.get(worker_id)
        if process is None or not process.pid:
            return 0.0
        return (process.group.cpu_s() if process.group else 0.0) or usage.cpu_s(process.pid)

    def stats(self, worker_id: str) -> Stats:
        process = self._workers.get(worker_id)
        if process is None or not process.pid:
            return Stats()
        counters = process.group.counters() if process.group else Counters()
        pids = (process.group.pids() if process.group else []) or [process.pid]
        return usage.stats(counters, pids)

    async def close(self) -> None:
        for worker_id in list(self._workers):
            await self.destroy(worker_id)
        await self._spares.close()
        await self._templates.close()
        if self._hierarchy is not None:
            await asyncio.to_thread(self._sweep)
            self._hierarchy.close()

    def _place(self, launch_: Launch, spare: Spare | None) -> _Process:
        """Makes what the worker needs before it exists: its socket's directory, its group unless a spare has one."""
        revision = launch_.revision
        slot = spare.slot if spare else self._slots.take(revision.agent)
        directory = self._templates.workers_dir(revision.agent) / str(slot)
        uid_base = self._templates.uid_base(revision)
        doors.make(directory, uid_base + slot if uid_base else os.geteuid())
        group = spare.group if spare else None
        if group is None and self._hierarchy is not None:
            # A name used once: the group of an earlier worker of this id may still be leaving.
            group = self._hierarchy.create(f"{launch_.worker_id}.{secrets.token_hex(3)}", revision.limits)
        return _Process(launch_, slot, group, directory, self._logs.size(revision.agent, launch_.worker_id))

    def _close_door(self, process: _Process, template: ImageTemplate) -> None:
        revision, slot = process.launch.revision, process.slot
        # A worker that could not be isolated runs as the pool does.
        uid_base = 0 if template.prepared.degraded else self._templates.uid_base(revision)
        try:
            doors.close(process.directory, slot, uid_base + slot if uid_base else os.geteuid())
        except errors.AgentFailed as error:
            raise errors.AgentFailed(f"worker {process.launch.worker_id} failed: {error.message}") from None

    def _attach(self, process: _Process, pid: object, template: ImageTemplate | None) -> None:
        """Watches over a worker, and may signal it from now on.

        Args:
            process: gets the pid.
            pid: as somebody said.
            template: who said it, and must be its parent, because it has run the agent's code: a pool that is root
                would signal whatever process it names. None if the pool knows by itself.

        Raises:
            AgentFailed: it is another's process.
        """
        if not isinstance(pid, int) or pid <= 1:
            raise errors.AgentFailed(f"the template of '{process.launch.revision.agent}' tells no pid")
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            process.ended.set()
        else:
            # What the descriptor names cannot become another; so look at the process only now.
            if template is not None and processes.parent(pid) not in (processes.GONE, template.pid):
                os.close(pidfd)
                raise errors.AgentFailed(
                    f"the template of '{process.launch.revision.agent}' gave process {pid} for a worker, "
                    "which is not one of its own"
                )
            process.pidfd = pidfd
            asyncio.get_running_loop().add_reader(pidfd, self._on_end, process)
        process.pid = pid
        process.exit = asyncio.create_task(self._tell_exit(process))

    def _on_end(self, process: _Process) -> None:
        asyncio.get_running_loop().remove_reader(process.pidfd)
        os.close(process.pidfd)
        process.ended.set()

    async def _tell_exit(self, process: _Process) -> Exit:
        await process.ended.wait()
        # Read at once: `destroy` may remove the group.
        counters = process.group.counters() if process.group else Counters()
        status = await self._status(process)
        process.reports.hear_out()
        reason = exits.explain(status, counters, process.launch.revision.limits)
        if process.reports.listening and status != 0:
            # Of one that never served, whoever started it hears.
            worker_id, agent = process.launch.worker_id, process.launch.revision.agent
            with contextlib.suppress(OSError):  # a full disk must not hide how the worker ended
                self._logs.note(agent, worker_id, "error", "worker ended", reason=reason)
        failure = process.reports.failure
        code = None if status is None else os.waitstatus_to_exitcode(status)
        return Exit(reason, failure.get("error", ""), failure.get("traceback", ""), code)

    async def _status(self, process: _Process) -> int | None:
        """Of a process that has ended, as waitpid(2) has it; None if its template cannot tell any more."""
        told = self._templates.exit_status(process.pid)
        gone = asyncio.create_task(self._templates.gone(process.launch.revision.key))
        either: list[asyncio.Future[Any]] = [told, gone]
        await asyncio.wait(either, timeout=_STATUS_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        return told.result() if told.done() and not told.cancelled() else None

    async def _until_listening(self, process: _Process) -> None:
        loop = asyncio.get_running_loop()
        reports = process.reports
        assert reports.connection is not None
        woken = asyncio.Event()
        ending = asyncio.create_task(process.ended.wait())
        ending.add_done_callback(lambda _: woken.set())
        loop.add_reader(reports.connection, woken.set)
        try:
            while True:
                ended = process.ended.is_set()
                reports.hear()
                if reports.listening:
                    return
                if ended:
                    raise self._failure(process, await self.wait(process.launch.worker_id))
                if reports.too_much:
                    raise errors.AgentFailed(
                        f"worker {process.launch.worker_id} said more than {units.format_size(MOST_BYTES)} to the "
                        "pool before it was ready; an agent must leave that socket alone"
                    )
                if reports.hung_up:
                    loop.remove_reader(reports.connection)
                woken.clear()
                await woken.wait()
        finally:
            loop.remove_reader(reports.connection)
            ending.cancel()

    def _failure(self, process: _Process, end: Exit) -> errors.AgentFailed:
        worker_id, agent = process.launch.worker_id, process.launch.revision.agent
        if end.traceback:
            return errors.AgentFailed(f"worker {worker_id} failed: {end.error} ({end.reason})\n{end.traceback}")
        words = self._logs.last_words(agent, worker_id, process.log_start)
        return errors.AgentFailed(f"worker {worker_id} ended before it was ready: {end.reason}{words}")

    def _ask_to_drain(self, process: _Process, grace_s: float) -> None:
        if not process.reports.ask_to_drain(grace_s) and not process.ended.is_set():
            # Taken over from a pool that died: the signal says the same, with the grace it was started with.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process.pidfd, signal.SIGTERM)

    def _kill(self, process: _Process) -> None:
        if process.group is not None:
            process.group.kill()
        if process.pid and not process.ended.is_set():
            if process.group is None:
                with contextlib.suppress(ProcessLookupError):
                    # The session that the worker made for itself.
                    os.killpg(process.pid, signal.SIGKILL)
            # Also with one: it may not have joined it yet.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)

    def _adopt(self, launch_: Launch, handle: Mapping[str, Any]) -> _Process | None:
        group = self._hierarchy.group(handle["group"]) if self._hierarchy and handle["group"] else None
        if group is not None and handle["pid"] not in group.pids():
            return None
        revision = launch_.revision
        slot = int(handle["slot"])
        self._slots.claim(revision.agent, slot)
        directory = self._templates.workers_dir(revision.agent) / str(slot)
        process = _Process(launch_, slot, group, directory, self._logs.size(revision.agent, launch_.worker_id))
        self._workers[launch_.worker_id] = process
        self._attach(process, handle["pid"], None)
        return process

    def _sweep(self) -> None:
        """Ends and removes groups and socket directories that nobody owns any more. Blocks."""
        if self._hierarchy is not None:
            kept = {process.group.name for process in self._workers.values() if process.group}
            kept |= self._templates.groups() | self._spares.groups()
            for name in self._hierarchy.names():
                if name not in kept:
                    self._hierarchy.group(name).remove()
        directories = {process.directory for process in self._workers.values()}
        for agent in self._sockets.iterdir() if self._sockets.is_dir() else ():
            for directory in agent.iterdir():
                if directory not in directories:
                    shutil.rmtree(directory, ignore_errors=True)
            if not any(agent.iterdir()) and not self._workers:
                agent.rmdir()

    def _running(self, process: _Process) -> Running:
        return Running(
            worker_id=process.launch.worker_id,
            pid=process.pid,
            address=f"unix:{process.directory / 's'}",
            handle={
                "pid": process.pid,
                "start_time": processes.start_time(process.pid),
                "group": process.group.name if process.group else "",
                "slot": process.slot,
            },
        )


def _move_caps(group: Group, before: Limits, limits: Limits) -> None:
    """Sets the caps of a group; if the kernel refuses one, all are as they were. Blocks."""
    used = group.counters().memory_bytes
    if limits.memory_bytes is not None and used > limits.memory_bytes:
        raise errors.FailedPrecondition(
            f"{units.format_size(used)} of memory are in use, more than the new limit of "
            f"{units.format_size(limits.memory_bytes)}; ask for more, or restart with less to do"
        )
    try:
        group.limit(limits, lift=True)
    except OSError as error:
        group.limit(before, lift=True)
        raise errors.FailedPrecondition(f"the kernel refused the new limits: {error.strerror}") from None


def _worker_spec(launch_: Launch, slot: int) -> WorkerSpec:
    return replace(
        spares.any_worker(launch_.revision, slot),
        worker_id=launch_.worker_id,
        env=gpus.environment(launch_.gpus),
    )
