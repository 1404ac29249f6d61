"""The process driver: workers are forked from templates, inside control groups, and serve on Unix sockets."""

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from agentruntime import errors, launch, log, processes, seccomp
from agentruntime.home import Home
from agentruntime.launch import WorkerSpec

from agent_pool import gpus
from agent_pool.cgroups.base import Counters, Hierarchy, Limits
from agent_pool.drivers import doors, endings, spares
from agent_pool.drivers.base import Driver, Enforcement, Exit, Launch, Prepared, Revision, Running, Stats
from agent_pool.drivers.control import ControlClosed, Message
from agent_pool.drivers.peers import Peers
from agent_pool.drivers.reports import Reports
from agent_pool.drivers.slots import Slots
from agent_pool.drivers.spares import Spare, Spares
from agent_pool.drivers.templates import ImageTemplate, Templates
from agent_pool.drivers.venvs import Venvs
from agent_pool.drivers.worker_process import WorkerProcess
from agent_pool.logs import LogStore
from agent_pool.secrets.vault import Vault

# Between the end of a process and its template's word on how it ended.
_STATUS_TIMEOUT_S = 1.0
_KILL_TIMEOUT_S = 5.0
_log = log.get("agent_pool.process")


class ProcessDriver(Driver):
    """Workers of one pool on this machine.

    Args:
        home: the pool's.
        logs: the pool's.
        hierarchy: prepared; None caps nothing.
        environment: that workers begin with.
        vault: what workers get their secrets from.
        slots: of all drivers of the pool: no two workers of an agent may have one uid.
    """

    name = "process"

    def __init__(
        self,
        home: Home,
        logs: LogStore,
        hierarchy: Hierarchy | None,
        environment: Mapping[str, str],
        *,
        vault: Vault,
        slots: Slots | None = None,
    ) -> None:
        self._logs = logs
        self._vault = vault
        self._hierarchy = hierarchy
        self._workers: dict[str, WorkerProcess] = {}
        self._venvs = Venvs(environment)
        self._templates = Templates(home, logs, hierarchy, environment)
        self._slots = slots or Slots()
        self._peers = Peers(home)
        self._spares = Spares(hierarchy, self._slots)
        self._sockets = home.run / "w"

    async def enforcement(self, mode: str) -> list[Enforcement]:
        capped = self._hierarchy.enforceable if self._hierarchy else frozenset()
        how = self._hierarchy.name if self._hierarchy else ""
        why = "no control group of this machine may be written; run as root, or with systemd's Delegate=yes"
        found = [
            Enforcement(what, what in capped, how if what in capped else why) for what in ("memory", "cpu", "pids")
        ]
        root = os.geteuid() == 0
        refused = self._templates.sandbox_refused()
        unfiltered = seccomp.missing()
        unlimited = self._hierarchy.network_unlimited() if self._hierarchy else why
        uid = "a uid of its own for each worker" if root else "the platform's own uid: run as root for one each"
        return [
            *found,
            Enforcement("network", not refused, refused or "a network namespace for each worker"),
            Enforcement("egress", not refused, refused or "to what an agent may reach, by way of the gateway"),
            Enforcement("filesystem", not refused, refused or "a read-only view of what a worker needs"),
            Enforcement("process", root and not refused, refused or uid),
            Enforcement("secrets", not refused, refused or "files in memory, of each worker's own"),
            Enforcement("seccomp", not unfiltered, unfiltered or "a filter of system calls for each worker"),
            Enforcement("network_limit", not unlimited, unlimited or "a BPF program on each limited worker's group"),
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
        # First: what is refused must not cost a spare.
        self._vault.granted(revision.agent, revision.secrets)
        spare = self._spares.take(revision.key, template.channel)
        slot = spare.slot if spare else self._slots.take(revision.agent)
        try:
            process = self._place(launch_, slot, spare, template)
        except BaseException:
            if spare:
                await self._spares.discard(spare)
            else:
                self._slots.free(revision.agent, slot)
            raise
        self._workers[launch_.key] = process
        try:
            answer = await self._fork(template, process, spare)
        except ControlClosed:
            raise errors.Unavailable(f"the template of '{revision.agent}' ended; try again") from None
        if not answer.get("ok"):
            raise errors.AgentFailed(f"worker {launch_.worker_id} could not be forked: {answer.get('error')}")
        process.attach(answer.get("pid"), template.pid, self._tell_exit(process))
        await process.until_listening(partial(endings.failure, process))
        process.close_door(self._uid(revision, process.slot, template))
        self._spares.renew(revision, template.channel, template.pid)
        return process.running()

    async def _fork(self, template: ImageTemplate, process: WorkerProcess, spare: Spare | None) -> Message:
        """Has the template make the worker, out of the spare if there is one."""
        launch_ = process.launch
        revision = launch_.revision
        descriptors: list[int] = []
        try:
            descriptors.append(self._logs.open(revision.agent, launch_.worker_id))
            ours, theirs = socket.socketpair()
            process.reports = Reports(ours)
            descriptors.append(theirs.detach())
            handed = self._vault.hand_over(revision.agent, revision.secrets)
            descriptors += handed.descriptors
            process.secrets = handed.versions
            spec = _worker_spec(launch_, process.slot, secrets=bool(handed.descriptors))
            request = launch.spec_message("fork", spec)
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

    async def wait(self, key: str) -> Exit:
        return await self._workers[key].wait()

    async def stop(self, key: str, grace_s: float) -> Exit:
        process = self._workers.get(key)
        return await process.stop(grace_s) if process else Exit("it never ran")

    async def limit(self, key: str, limits: Limits) -> None:
        process = self._workers.get(key)
        if process is None:
            raise errors.FailedPrecondition(f"worker {key} does not run now; try again")
        await asyncio.to_thread(process.limit, limits)
        # It has the old ones.
        await self._spares.drop(process.launch.revision.key)

    async def debug(self, key: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await self._workers[key].debugger()

    async def destroy(self, key: str) -> None:
        process = self._workers.get(key)
        if process is None:
            return
        try:
            process.kill()
            if process.pid:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_KILL_TIMEOUT_S):
                        await process.ended.wait()
            if process.group is not None:
                await asyncio.to_thread(process.group.remove)
            await asyncio.to_thread(shutil.rmtree, process.directory, ignore_errors=True)
            if process.exit is not None:
                await asyncio.wait([process.exit])
        finally:
            # Also what ends a worker whose pid the pool never heard: it ends with this socket until it listens.
            process.reports.close()
        self._templates.forget_exit(process.launch.revision.key, process.pid)
        if self._workers.get(key) is process:
            del self._workers[key]
            revision = process.launch.revision
            self._peers.forget(self._templates.uid_base(revision) + process.slot)
            self._slots.free(revision.agent, process.slot)

    async def recover(
        self,
        revisions: Mapping[str, Prepared],
        launches: Mapping[str, Launch],
        handles: Mapping[str, Mapping[str, Any]],
    ) -> list[Running]:
        await self._templates.recover(revisions)
        adopted = []
        for key, each in launches.items():
            handle = handles.get(key)
            if handle and processes.alive(handle["pid"], handle.get("start_time", 0.0)):
                process = self._adopt(each, handle)
                if process is not None:
                    adopted.append(process.running())
        await asyncio.to_thread(self._sweep)
        return adopted

    def warm(self) -> Collection[str]:
        return self._templates.keys()

    def cpu_s(self, key: str) -> float:
        process = self._workers.get(key)
        return process.cpu_s() if process else 0.0

    def stats(self, key: str, *, share: bool = False) -> Stats:
        process = self._workers.get(key)
        return process.stats(share=share) if process else Stats()

    async def close(self) -> None:
        for key in list(self._workers):
            await self.destroy(key)
        await self._spares.close()
        await self._templates.close()
        if self._hierarchy is not None:
            await asyncio.to_thread(self._sweep)
            self._hierarchy.close()

    def _place(self, launch_: Launch, slot: int, spare: Spare | None, template: ImageTemplate) -> WorkerProcess:
        """Makes what the worker needs before it exists: its socket's directory, its group unless a spare has one."""
        revision = launch_.revision
        log_start = self._logs.size(revision.agent, launch_.worker_id)
        directory = self._templates.workers_dir(revision.agent) / str(slot)
        uid = self._uid(revision, slot, template)
        doors.make(directory, uid)
        group = spare.group if spare else None
        if group is None and self._hierarchy is not None:
            # A name used once: the group of an earlier worker of this id may still be leaving.
            group = self._hierarchy.create(f"{launch_.worker_id}.{secrets.token_hex(3)}", revision.limits)
        self._peers.tell(uid, launch_, group.name if group else "")
        return WorkerProcess(launch_, slot, group, directory, log_start)

    def _uid(self, revision: Revision, slot: int, template: ImageTemplate) -> int:
        """Of the worker in a slot; one that could not be isolated runs as the pool does."""
        uid_base = 0 if template.prepared.degraded else self._templates.uid_base(revision)
        return uid_base + slot if uid_base else os.geteuid()

    async def _tell_exit(self, process: WorkerProcess) -> Exit:
        await process.ended.wait()
        # Read at once: `destroy` may remove the group.
        counters = process.group.counters() if process.group else Counters()
        status = await self._status(process)
        return endings.told(self._logs, process, status, counters)

    async def _status(self, process: WorkerProcess) -> int | None:
        """Of a process that has ended, as waitpid(2) has it; None if its template cannot tell any more."""
        told = self._templates.exit_status(process.launch.revision.key, process.pid)
        gone = asyncio.create_task(self._templates.gone(process.launch.revision.key))
        either: list[asyncio.Future[Any]] = [told, gone]
        await asyncio.wait(either, timeout=_STATUS_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        return told.result() if told.done() and not told.cancelled() else None

    def _adopt(self, launch_: Launch, handle: Mapping[str, Any]) -> WorkerProcess | None:
        group = self._hierarchy.group(handle["group"]) if self._hierarchy and handle["group"] else None
        if group is not None and handle["pid"] not in group.pids():
            return None
        revision = launch_.revision
        slot = int(handle["slot"])
        self._slots.claim(revision.agent, slot)
        directory = self._templates.workers_dir(revision.agent) / str(slot)
        process = WorkerProcess(launch_, slot, group, directory, self._logs.size(revision.agent, launch_.worker_id))
        process.secrets = dict(handle.get("secrets", {}))
        self._workers[launch_.key] = process
        process.attach(handle["pid"], None, self._tell_exit(process))
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


def _worker_spec(launch_: Launch, slot: int, *, secrets: bool) -> WorkerSpec:
    return replace(
        spares.any_worker(launch_.revision, slot),
        worker_id=launch_.worker_id,
        env=gpus.environment(launch_.gpus),
        secrets=secrets,
    )
