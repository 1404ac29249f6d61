"""The Docker driver: workers are containers of the engine on this machine, and serve on Unix sockets as processes do.

The pool binds the directory of a worker's socket into its container, and hands it its log and its channel over a
socket there (`agentruntime.launch`, "become"). From then on it is a worker like any other; what differs is who made
it and who caps it.
"""

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
import socket
import struct
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentruntime import egress, errors, launch, log, processes
from agentruntime.home import Home, short
from agentruntime.launch import CONTAINER_CONTROL, KERNEL_DIR, SandboxSpec, TemplateSpec

from agent_pool import gpus
from agent_pool.cgroups import detect
from agent_pool.cgroups.base import Counters, Limits
from agent_pool.drivers import control, docker_calls, docker_network, docker_request, doors, endings, slots, spares
from agent_pool.drivers.base import Driver, Enforcement, Exit, Launch, Prepared, Revision, Running, Stats
from agent_pool.drivers.docker_engine import Engine
from agent_pool.drivers.docker_images import Images, LoadedRevisions
from agent_pool.drivers.peers import Peers, kernel_dir
from agent_pool.drivers.reports import Reports
from agent_pool.drivers.slots import Slots
from agent_pool.drivers.worker_process import WorkerProcess
from agent_pool.logs import LogStore
from agent_pool.secrets.vault import Vault

if TYPE_CHECKING:
    import docker

# A message of some kilobytes, to a process that has just asked for it.
_SEND_TIMEOUT_S = 10.0
_KILL_TIMEOUT_S = 5.0
# unix(7), struct ucred: pid, uid, gid.
_UCRED = struct.Struct("3i")
_log = log.get("agent_pool.docker")


@dataclass
class _Container:
    """One worker's, from before it exists until nothing of it is left."""

    process: WorkerProcess
    uid: int
    # By which the engine knows it: chosen before it exists, or the id of one taken over.
    name: str
    # Becomes its id and pid; goes on in its thread whatever happens to whoever waits.
    creating: asyncio.Future[tuple[str, int]] | None = None
    id: str = ""


class DockerDriver(Driver):
    """Containers of one pool.

    Args:
        home: the pool's.
        logs: the pool's.
        engine: makes them.
        images: makes their images, given a client of the engine.
        worker_slots: of all drivers of the pool: no two workers of an agent may have one uid.
        vault: what workers get their secrets from.
    """

    name = "docker"

    def __init__(
        self,
        home: Home,
        logs: LogStore,
        engine: Engine,
        images: "Callable[[docker.DockerClient], Images]",
        worker_slots: Slots,
        *,
        vault: Vault,
    ) -> None:
        self._logs = logs
        self._vault = vault
        self._engine = engine
        self._home = home
        self._slots = worker_slots
        self._peers = Peers(home)
        # Other than the processes': their templates have those in their view of the file system.
        self._places = home.run / "c"
        # Names this pool among others of the same engine.
        self._pool = hashlib.sha256(os.fsencode(home.root)).hexdigest()[:12]
        # Of this process' own containers, which no sweep is after.
        self._names = f"agentruntime-{self._pool}-{secrets.token_hex(4)}"
        self._loaded = LoadedRevisions(engine, images, self._pool, self._names, self._places)
        self._containers: dict[str, _Container] = {}
        # Of which the engine is not rid yet: they keep their slot and directory until it is.
        self._left: list[_Container] = []
        # There may be containers of a pool before this one.
        self._unswept = False
        self._settling = asyncio.Lock()

    async def enforcement(self, mode: str) -> list[Enforcement]:
        if absent := await self._engine.absent():
            return [Enforcement("engine", False, absent)]
        info = self._engine.info
        version = f"Docker {info.get('ServerVersion', '')}"
        caps = {"memory": "MemoryLimit", "cpu": "CpuCfsQuota", "pids": "PidsLimit"}
        why = "the engine's kernel has no such control group"
        capped = [
            Enforcement(what, bool(info.get(field)), f"{version}, cgroup v{info.get('CgroupVersion', 1)}")
            if info.get(field)
            else Enforcement(what, False, why)
            for what, field in caps.items()
        ]
        filtered = any(option.startswith("name=seccomp") for option in info.get("SecurityOptions") or ())
        missing = "the engine filters no system calls; its kernel needs CONFIG_SECCOMP"
        unlimited = docker_network.missing()
        root = os.geteuid() == 0
        uid = "a uid of its own for each worker" if root else "the platform's own uid: run as root for one each"
        return [
            Enforcement("engine", True, version),
            *capped,
            Enforcement("network", True, "a network namespace for each worker, with nothing in it"),
            Enforcement("egress", True, "to what an agent may reach, by way of the gateway; hosts by name"),
            Enforcement("filesystem", True, "the container image, read-only"),
            Enforcement("process", True, f"no capabilities, no new privileges, {uid}"),
            Enforcement(
                "network_limit", not unlimited, unlimited or "a BPF program on each limited container's group"
            ),
            Enforcement("secrets", True, "files in memory, of each container's own"),
            Enforcement("seccomp", filtered, "a filter of system calls for each worker" if filtered else missing),
        ]

    async def choose(self) -> str:
        return "native" if await self._engine.absent() else "container"

    async def check(self, revision: Revision) -> None:
        if literals := [way.entry for way in egress.ways(revision.egress) if way.is_literal]:
            raise errors.FailedPrecondition(
                f"agent '{revision.agent}' is to reach {', '.join(literals)}, and a container reaches hosts by name "
                "only; name them, or run it with --native"
            )
        if revision.venv:
            raise errors.FailedPrecondition(
                f"{revision.venv} is on this machine, and a container has what its image has; leave out --venv and "
                "name the agent's packages in agent.yaml, or run it with --native"
            )
        if absent := await self._engine.absent():
            raise errors.FailedPrecondition(f"agent '{revision.agent}' is to run in containers, and {absent}")

    async def prepare(self, revision: Revision) -> Prepared:
        return (await self._loaded.get(revision, slots.uid(revision.agent_index, 0))).prepared

    async def rest(self, revision: Revision) -> None:
        """Nothing runs of a revision but its workers."""

    async def release(self, revision: Revision) -> None:
        self._loaded.forget(revision.key)

    def warm(self) -> Collection[str]:
        return self._loaded.keys()

    async def start(self, launch_: Launch) -> Running:
        revision = launch_.revision
        loaded = await self._loaded.get(revision, slots.uid(revision.agent_index, 0))
        await self._settle()
        slot = self._slots.take(revision.agent)
        try:
            container = self._place(launch_, slot)
        except BaseException:
            self._slots.free(revision.agent, slot)
            raise
        self._containers[launch_.key] = container
        process = container.process
        door = process.directory / Path(CONTAINER_CONTROL).name
        listener = control.listen(door)
        try:
            listener.setblocking(False)
            if container.uid != os.geteuid():
                os.chown(door, container.uid, container.uid)
            await self._create(container, loaded.image)
            connection = await self._connection(container, listener)
        finally:
            listener.close()
            door.unlink(missing_ok=True)
        process.reports = Reports(connection)
        await self._tell_who(process, connection)
        await process.until_listening(partial(endings.failure, process))
        process.close_door(container.uid)
        return self._running(container)

    def _place(self, launch_: Launch, slot: int) -> _Container:
        """Makes what the worker needs before it exists."""
        revision = launch_.revision
        uid = slots.uid(revision.agent_index, slot)
        directory = self._directory(revision.agent, slot)
        doors.make(directory, uid)
        log_start = self._logs.size(revision.agent, launch_.worker_id)
        return _Container(
            WorkerProcess(launch_, slot, None, directory, log_start), uid, docker_request.name(self._names)
        )

    async def _create(self, container: _Container, image: str) -> None:
        process = container.process
        config = docker_request.worker(
            process.launch,
            image=image,
            user=slots.user(container.uid),
            directory=process.directory,
            kernel_dir=kernel_dir(self._home, process.launch.revision.agent),
            pool=self._pool,
        )
        container.creating = asyncio.ensure_future(
            self._engine.ask(partial(docker_calls.launched, config, container.name))
        )
        try:
            container.id, pid = await asyncio.shield(container.creating)
        except errors.NotFound:
            self._loaded.forget(process.launch.revision.key)
            raise errors.Unavailable(
                f"the container image of '{process.launch.revision.agent}' is gone; try again"
            ) from None
        if pid:
            await self._attach(container, pid)
            self._peers.tell(container.uid, process.launch, container.id)
            if bits_per_s := process.launch.revision.limits.network_bps:
                # It waits to be told who it is, and has run nothing of the agent's.
                await asyncio.to_thread(docker_network.limit, container.id, pid, bits_per_s)
        else:
            process.ended.set()
            process.exit = asyncio.create_task(self._tell_exit(container))

    async def _attach(self, container: _Container, pid: int) -> None:
        """Raises FailedPrecondition if that is no process of the container."""
        process = container.process
        group = await asyncio.to_thread(detect.group_of, pid)
        process.attach(pid, None, self._tell_exit(container), container=container.id)
        # To kill it kills all that is in it.
        process.group = group if group and container.id in group.name else None

    async def _connection(self, container: _Container, listener: socket.socket) -> socket.socket:
        """The worker's. Raises AgentFailed if it ends before it connects."""
        process = container.process
        while (connection := await control.accepted(listener, process.ended)) is not None:
            peer = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            if peer[:2] == (process.pid, container.uid):
                return connection
            # Only the container sees this socket, and only its first process has anything to say here.
            connection.close()
        raise await self._failure(container)

    async def _failure(self, container: _Container) -> errors.AgentFailed:
        """Of one that ended before it had its log."""
        process = container.process
        end = await process.wait()
        words = await self._engine.ask(partial(docker_calls.last_words, container.id))
        return errors.AgentFailed(
            f"worker {process.launch.worker_id} ended before it was ready: {end.reason}"
            + (f"\n{words}" if words else "")
        )

    async def _tell_who(self, process: WorkerProcess, connection: socket.socket) -> None:
        """Says to a container which worker it is, and hands it its log and its secrets."""
        launch_ = process.launch
        revision = launch_.revision
        descriptors = [self._logs.open(revision.agent, launch_.worker_id)]
        try:
            handed = self._vault.hand_over(revision.agent, revision.secrets)
            descriptors += handed.descriptors
            process.secrets = handed.versions
            message = _who_message(launch_, process.slot, has_secrets=bool(handed.descriptors))
            connection.settimeout(_SEND_TIMEOUT_S)
            await asyncio.to_thread(launch.send, connection, message, descriptors)
        except OSError as error:
            raise errors.AgentFailed(f"worker {launch_.worker_id} did not hear who it is: {error}") from None
        finally:
            connection.setblocking(False)
            for descriptor in descriptors:
                os.close(descriptor)

    async def wait(self, key: str) -> Exit:
        return await self._containers[key].process.wait()

    async def stop(self, key: str, grace_s: float) -> Exit:
        container = self._containers.get(key)
        return await container.process.stop(grace_s) if container else Exit("it never ran")

    async def limit(self, key: str, limits: Limits) -> None:
        container = self._containers.get(key)
        if container is None or not container.id:
            raise errors.FailedPrecondition(f"worker {key} does not run now; try again")
        process = container.process
        await asyncio.to_thread(process.check_room, limits)
        await self._engine.ask(partial(docker_calls.update, container.id, docker_request.caps(limits, lift=True)))
        process.launch = replace(process.launch, revision=replace(process.launch.revision, limits=limits))

    async def debug(self, key: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await self._containers[key].process.debugger()

    async def destroy(self, key: str) -> None:
        container = self._containers.get(key)
        if container is None:
            return
        process = container.process
        try:
            process.kill()
            if container.creating is not None:
                await asyncio.wait([container.creating])
                if not container.creating.cancelled() and container.creating.exception() is None:
                    container.id, _ = container.creating.result()
            if process.exit is not None:
                # It is read back how it ended, as long as there is something to read.
                await asyncio.wait([process.exit], timeout=_KILL_TIMEOUT_S)
            gone = await self._wiped(container)
        finally:
            process.reports.close()
        if self._containers.get(key) is container:
            del self._containers[key]
            if gone:
                self._free(container)
            else:
                self._left.append(container)

    async def _wiped(self, container: _Container) -> bool:
        """Whether nothing is left of a worker but its slot."""
        made = container.id or container.creating is not None
        if made and not await self._remove(container.name):
            return False
        await asyncio.to_thread(shutil.rmtree, container.process.directory, ignore_errors=True)
        return True

    def _free(self, container: _Container) -> None:
        process = container.process
        self._peers.forget(container.uid)
        self._slots.free(process.launch.revision.agent, process.slot)
        with contextlib.suppress(OSError):  # others have theirs there
            process.directory.parent.rmdir()

    async def _settle(self) -> None:
        """Before a start: tries again to remove what is left, now that the engine answers.

        Raises:
            FailedPrecondition: it does not.
        """
        async with self._settling:
            await self._engine.connect()
            if self._unswept:
                await self._sweep()
            for container in list(self._left):
                if await self._wiped(container):
                    self._left.remove(container)
                    self._free(container)

    async def _remove(self, container: str) -> bool:
        """Whether the engine is rid of a container; otherwise the next start tries again."""
        try:
            await self._engine.ask(partial(docker_calls.removed, container))
        except errors.AgentError as error:
            _log.error("a container is left", container=container, error=error.message)
            return False
        return True

    async def recover(
        self,
        revisions: Mapping[str, Prepared],
        launches: Mapping[str, Launch],
        handles: Mapping[str, Mapping[str, Any]],
    ) -> list[Running]:
        adopted = []
        for key, each in launches.items():
            handle = handles.get(key) or {}
            if handle.get("container") and processes.alive(handle["pid"], handle.get("start_time", 0.0)):
                try:
                    adopted.append(self._running(await self._adopt(each, handle)))
                except errors.FailedPrecondition as error:
                    _log.error("a container is not taken over", key=key, error=error.message)
        # A pool that had no containers does not ask for an engine, which may take its time.
        self._unswept = self._places.is_dir() and any(self._places.iterdir())
        if self._unswept:
            await self._sweep()
        return adopted

    async def _adopt(self, launch_: Launch, handle: Mapping[str, Any]) -> _Container:
        agent, slot, ident = launch_.revision.agent, int(handle["slot"]), str(handle["container"])
        log_start = self._logs.size(agent, launch_.worker_id)
        process = WorkerProcess(launch_, slot, None, self._directory(agent, slot), log_start)
        process.secrets = dict(handle.get("secrets", {}))
        container = _Container(process, slots.uid(launch_.revision.agent_index, slot), ident, id=ident)
        await self._attach(container, handle["pid"])
        self._slots.claim(agent, slot)
        self._containers[launch_.key] = container
        return container

    async def _sweep(self) -> None:
        """Removes the containers and directories that a pool before this one left. No start may be in its midst."""
        try:
            found = await self._engine.ask(partial(docker_calls.containers, self._pool))
        except errors.AgentError as error:
            _log.error("containers may be left", error=error.message)
            return
        kept = {container.id for container in self._containers.values()}
        stale = [ident for ident, name in found.items() if ident not in kept and not name.startswith(self._names)]
        if not all([await self._remove(ident) for ident in stale]):
            return
        self._unswept = False
        own = (*self._containers.values(), *self._left)
        await asyncio.to_thread(_clear, self._places, {container.process.directory for container in own})

    def cpu_s(self, key: str) -> float:
        container = self._containers.get(key)
        return container.process.cpu_s() if container else 0.0

    def stats(self, key: str, *, share: bool = False) -> Stats:
        container = self._containers.get(key)
        return container.process.stats(share=share) if container else Stats()

    async def close(self) -> None:
        for key in list(self._containers):
            await self.destroy(key)
        await self._engine.close()

    async def _tell_exit(self, container: _Container) -> Exit:
        process = container.process
        await process.ended.wait()
        # Read at once: the engine removes the group.
        counters = process.group.counters() if process.group else Counters()
        status, oom_killed = None, False
        try:
            state = await self._engine.ask(partial(docker_calls.state, container.id))
        except errors.AgentError as error:
            _log.warning("how a container ended is not known", container=container.id, error=error.message)
        else:
            status, oom_killed = docker_request.ended(state)
        counters = replace(counters, oom_kills=max(counters.oom_kills, int(oom_killed)))
        return endings.told(self._logs, process, status, counters)

    def _running(self, container: _Container) -> Running:
        running = container.process.running()
        return replace(running, handle={**running.handle, "container": container.id})

    def _directory(self, agent: str, slot: int) -> Path:
        return self._places / short(agent) / str(slot)


def _clear(places: Path, kept: Collection[Path]) -> None:
    for agent in places.iterdir():
        with contextlib.suppress(OSError):  # gone meanwhile, or others have theirs there
            for directory in agent.iterdir():
                if directory not in kept:
                    shutil.rmtree(directory, ignore_errors=True)
            agent.rmdir()


def _who_message(launch_: Launch, slot: int, *, has_secrets: bool) -> dict[str, Any]:
    """What a container is told of the worker that it is."""
    revision = launch_.revision
    spec = replace(
        spares.any_worker(revision, slot),
        worker_id=launch_.worker_id,
        # The container sees no other GPUs, and counts its own from 0.
        env=gpus.environment(tuple(range(len(launch_.gpus)))),
        secrets=has_secrets,
    )
    template = TemplateSpec(
        key=revision.key,
        agent=revision.agent,
        bundle="",
        entrypoint=revision.entrypoint,
        services=list(revision.services),
        env=dict(revision.env),
        log_level=revision.log_level,
        sandbox=SandboxSpec(
            kernel_dir=str(KERNEL_DIR), egress=[] if revision.host_network else list(revision.egress)
        ),
    )
    return {**launch.spec_message("become", spec), "template": launch.spec_message("", template)["spec"]}
