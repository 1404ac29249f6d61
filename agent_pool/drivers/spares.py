"""Spares: for each revision that runs, one process that waits to become its next worker.

What a start would wait for, a spare has behind it: it is in a control group with a worker's caps (joining one
waits for an RCU grace period, 10 to 20 ms on cgroup v1), in namespaces of its own, has its uid, and has started
grpc's core. It has run none of the agent's code. It costs about 4 MB; the ledger does not count it.
"""

import asyncio
import contextlib
import os
import secrets
import signal
from dataclasses import dataclass

from agentruntime import launch, log, processes
from agentruntime.launch import WorkerSpec

from agent_pool.cgroups.base import Group, Hierarchy
from agent_pool.drivers.base import Revision
from agent_pool.drivers.control import ControlChannel, ControlClosed
from agent_pool.drivers.slots import Slots

# After a start, so that a burst of starts, and the new worker's first calls, come first.
_DELAY_S = 0.05
# One message of the longest kind (4 MiB), and another that comes in.
_LEAST_HELD_BYTES = 8 * 2**20
_log = log.get("agent_pool.spares")


@dataclass(frozen=True)
class Spare:
    """One that waits."""

    # Of its template; it ends when that one does.
    channel: ControlChannel
    pid: int
    # That template's.
    parent: int
    agent: str
    slot: int
    group: Group | None


class Spares:
    """Of one pool."""

    def __init__(self, hierarchy: Hierarchy | None, slots: Slots) -> None:
        self._hierarchy = hierarchy
        self._slots = slots
        self._waiting: dict[str, Spare] = {}
        self._making: dict[str, asyncio.Task[None]] = {}
        # Groups of spares that are being made, so that nobody takes them for left over.
        self._unborn: set[str] = set()

    def take(self, key: str, channel: ControlChannel) -> Spare | None:
        """The spare of a revision's living template, if there is one; it is the caller's then."""
        spare = self._waiting.get(key)
        if spare is None or spare.channel is not channel or channel.closed.is_set():
            return None
        return self._waiting.pop(key)

    def renew(self, revision: Revision, channel: ControlChannel, parent: int) -> None:
        """Makes a spare in the background, unless there is one."""
        if revision.key not in self._making:
            task = asyncio.create_task(self._make(revision, channel, parent))
            self._making[revision.key] = task
            task.add_done_callback(lambda _: self._making.pop(revision.key, None))

    def groups(self) -> set[str]:
        """Names of the groups that spares are in."""
        return {spare.group.name for spare in self._waiting.values() if spare.group} | self._unborn

    async def drop(self, key: str) -> None:
        """Ends the spare of a revision, if there is one."""
        if task := self._making.get(key):
            task.cancel()
            await asyncio.wait([task])
        if spare := self._waiting.pop(key, None):
            await self.discard(spare)

    async def close(self) -> None:
        for key in {*self._waiting, *self._making}:
            await self.drop(key)

    async def discard(self, spare: Spare) -> None:
        """Ends a spare that was taken."""
        if spare.group is not None:
            await asyncio.to_thread(spare.group.remove)
        elif processes.parent(spare.pid) == spare.parent:  # its template said that pid, and may be wrong
            with contextlib.suppress(ProcessLookupError):
                os.kill(spare.pid, signal.SIGKILL)
        self._slots.free(spare.agent, spare.slot)

    async def _make(self, revision: Revision, channel: ControlChannel, parent: int) -> None:
        await asyncio.sleep(_DELAY_S)
        old = self._waiting.get(revision.key)
        if old is not None and old.channel is channel:
            return
        if old is not None:
            await self.discard(self._waiting.pop(revision.key))
        name = f"{revision.agent}-spare.{secrets.token_hex(3)}"
        self._unborn.add(name)
        group: Group | None = None
        slot = self._slots.take(revision.agent)
        try:
            if self._hierarchy is not None:
                group = await asyncio.to_thread(self._hierarchy.create, name, revision.limits)
            pid = await self._fork(any_worker(revision, slot), channel, group)
            self._waiting[revision.key] = Spare(channel, pid, parent, revision.agent, slot, group)
        except BaseException as error:
            if group is not None:
                await asyncio.to_thread(group.remove)
            self._slots.free(revision.agent, slot)
            if not isinstance(error, (ControlClosed, OSError)):
                raise
            _log.warning("no spare could be made", agent=revision.agent, error=repr(error))
        finally:
            self._unborn.discard(name)

    @staticmethod
    async def _fork(spec: WorkerSpec, channel: ControlChannel, group: Group | None) -> int:
        descriptors = group.open_procs() if group else []
        try:
            answer = await channel.request(launch.spec_message("spare", spec), descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        if not answer.get("ok"):
            raise OSError(0, str(answer.get("error")))
        return int(answer["pid"])


def _held_bytes(memory_limit_bytes: int | None) -> int:
    """What requests may take of a worker's memory: a request is there several times over while it is handled."""
    if memory_limit_bytes is None:
        return WorkerSpec.held_bytes
    return max(_LEAST_HELD_BYTES, memory_limit_bytes // 4)


def any_worker(revision: Revision, slot: int) -> WorkerSpec:
    """What is known of a worker before it is known which one it is."""
    return WorkerSpec(
        worker_id="",
        agent=revision.agent,
        revision=revision.number,
        slot=slot,
        log_level=revision.log_level,
        log_format=revision.log_format,
        concurrency=revision.concurrency,
        default_timeout_s=revision.default_timeout_s,
        queue=revision.queue,
        held_bytes=_held_bytes(revision.limits.memory_bytes),
        compression=revision.compression,
        optimize_throughput=revision.optimize_throughput,
        debug=revision.debug,
        conversations=revision.conversations,
    )
