"""The templates: a base per Python environment, an image template per revision, each started on need.

A template that dies is noticed by the end of its control connection, and is started again by whoever needs it next.
"""

import asyncio
import base64
import contextlib
import os
import signal
import sys
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from agentruntime import errors, launch, log, seccomp
from agentruntime.home import Home, short
from agentruntime.launch import SandboxSpec, TemplateSpec

from agent_pool import gpus
from agent_pool.cgroups.base import Group, Hierarchy, Limits
from agent_pool.drivers import peers, slots
from agent_pool.drivers.base import Prepared, Revision
from agent_pool.drivers.control import ControlChannel, ControlClosed, Message, listen
from agent_pool.logs import LogStore

# user_namespaces(7)
_USER_NAMESPACES = Path("/proc/sys/user/max_user_namespaces")
_BASE_TIMEOUT_S = 30.0
_QUIT_TIMEOUT_S = 5.0
# A fork costs 2 to 5 ms of CPU: with less than this, it would wait for the next 100 ms.
_LEAST_CPU_MILLIS = 200
# Exit statuses that arrived before anybody asked; enough for any burst.
_MOST_EXITS = 4096
_log = log.get("agent_pool.templates")


@dataclass
class ImageTemplate:
    """One that lives."""

    channel: ControlChannel
    prepared: Prepared
    group: Group | None
    pid: int


class Templates:
    """Of one pool."""

    def __init__(
        self, home: Home, logs: LogStore, hierarchy: Hierarchy | None, environment: Mapping[str, str]
    ) -> None:
        self._home = home
        self._logs = logs
        self._hierarchy = hierarchy
        self._environment = dict(environment)
        self._bases: dict[str, ControlChannel] = {}
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._templates: dict[str, ImageTemplate] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        # By template, so that none can tell how another's worker ended.
        self._exits: dict[str, dict[int, asyncio.Future[int]]] = {}
        self._sockets = home.run / "t"
        self._sockets.mkdir(mode=0o700, exist_ok=True)

    def workers_dir(self, agent: str) -> Path:
        """Where an agent's workers have their sockets."""
        return self._home.run / "w" / short(agent)

    def uid_base(self, revision: Revision) -> int:
        """First of the uids of an agent; 0 where this pool may not map any."""
        return slots.uid_base(revision.agent_index)

    def exit_status(self, key: str, pid: int) -> asyncio.Future[int]:
        """Becomes the wait status of a worker of that revision, once its template has seen it end."""
        exits = self._exits.setdefault(key, {})
        future = exits.get(pid)
        if future is None:
            future = asyncio.get_running_loop().create_future()
            exits[pid] = future
            if len(exits) > _MOST_EXITS:
                del exits[next(iter(exits))]
        return future

    async def gone(self, key: str) -> None:
        """Returns as soon as no template of that revision lives, whose word on its workers could be waited for."""
        if template := self._templates.get(key):
            await template.channel.closed.wait()

    def forget_exit(self, key: str, pid: int) -> None:
        self._exits.get(key, {}).pop(pid, None)

    async def get(self, revision: Revision) -> ImageTemplate:
        """The revision's template, loaded if it is not there.

        Raises:
            AgentFailed: it cannot be loaded; nothing of it is left.
        NotEnforceable: its code would be root here, without a sandbox.
        """
        async with self._locks.setdefault(revision.key, asyncio.Lock()):
            template = self._templates.get(revision.key)
            if template is None or template.channel.closed.is_set():
                template = await self._load(revision)
                self._templates[revision.key] = template
            return template

    def sandbox_refused(self) -> str:
        """Why agents are not isolated here, or ""; known for sure once one was loaded."""
        for template in self._templates.values():
            if template.prepared.degraded:
                return template.prepared.degraded[0]
        try:
            allowed = int(_USER_NAMESPACES.read_text())
        except OSError:
            allowed = 0
        return "" if allowed else f"the kernel allows no user namespaces ({_USER_NAMESPACES})"

    def keys(self) -> list[str]:
        """Of the revisions whose templates are loaded."""
        return [key for key, template in self._templates.items() if not template.channel.closed.is_set()]

    def groups(self) -> set[str]:
        """Names of the groups of the templates that live."""
        return {template.group.name for template in self._templates.values() if template.group}

    async def release(self, key: str) -> None:
        """Lets go of a template, if there is one; its workers go on."""
        async with self._locks.setdefault(key, asyncio.Lock()):
            template = self._templates.pop(key, None)
            if template is not None:
                await _quit(template.channel)
                await self._clean(key, template.group, template.pid)
                self._exits.pop(key, None)
        self._locks.pop(key, None)

    async def recover(self, revisions: Mapping[str, Prepared]) -> None:
        """Connects to the templates of a pool that died, as far as they are wanted, and ends the others."""
        pids: dict[str, int] = {}
        for path in sorted(self._sockets.glob("b-*")):
            if found := await self._reconnect(path, path.name):
                self._bases[path.name], answer = found
                pids.update(answer["children"])
        wanted = {self._socket(key): key for key in revisions}
        for path in sorted(self._sockets.glob("i-*")):
            key = wanted.get(path, "")
            found = await self._reconnect(path, key)
            if found is None:
                path.unlink()
                continue
            if key in pids:
                self._templates[key] = ImageTemplate(found[0], revisions[key], self._group(key), pids.pop(key))
            else:
                # Not wanted; or its base is gone, and with it the word on which process it is.
                await _quit(found[0])
                path.unlink()
        for pid in pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def close(self) -> None:
        """Ends all templates."""
        for key in list(self._templates):
            await self.release(key)
        for channel in self._bases.values():
            await _quit(channel)
        self._bases.clear()
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError, TimeoutError):
                async with asyncio.timeout(_QUIT_TIMEOUT_S):
                    await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
        for path in self._sockets.iterdir():
            path.unlink()

    async def _reconnect(self, path: Path, key: str) -> tuple[ControlChannel, Message] | None:
        """A living template's channel, and what it answers of its children: to be read of a base only."""
        try:
            channel = await ControlChannel.connect(path, partial(self._on_event, key))
        except OSError:
            return None
        try:
            async with asyncio.timeout(_QUIT_TIMEOUT_S):
                answer = await channel.request({"op": "children"})
        except (ControlClosed, TimeoutError):
            await channel.close()
            return None
        return channel, answer

    def _group(self, key: str) -> Group | None:
        return self._hierarchy.group(f"{key}.template") if self._hierarchy else None

    def _socket(self, key: str) -> Path:
        return self._sockets / f"i-{short(key)}"

    async def _load(self, revision: Revision) -> ImageTemplate:
        base = await self._base(revision.venv)
        group = self._group(revision.key)
        if group is not None and self._hierarchy is not None:
            await asyncio.to_thread(group.remove)  # of a template that died
            limits = replace(revision.limits, cpu_millis=None)
            self._hierarchy.create(group.name, limits)
        path = self._socket(revision.key)
        workers = self.workers_dir(revision.agent)
        workers.mkdir(mode=0o711, parents=True, exist_ok=True)
        descriptors: list[int] = []
        listener = listen(path)
        log_fd = self._logs.open(revision.agent, "template")
        try:
            descriptors = group.open_procs() if group else []
            request = base.request(
                launch.spec_message("load", self._spec(revision, workers)), [listener.fileno(), log_fd, *descriptors]
            )
            answer = await self._within(revision, base, group, request)
            if why := answer.get("unenforceable"):
                raise errors.NotEnforceable(
                    f"agent '{revision.agent}' does not run: this machine cannot isolate it ({why}), and the pool is "
                    f"root, so the agent would be, too; allow user namespaces ({_USER_NAMESPACES}), run the platform "
                    "as another user, or accept it with --allow-unenforced"
                )
            if not answer.get("ok"):
                trace = answer.get("traceback") or ""
                raise errors.AgentFailed(
                    f"agent '{revision.agent}' failed to import: {answer.get('error')}"
                    + (f"\n{trace}" if trace else "")
                )
            channel = await ControlChannel.connect(path, partial(self._on_event, revision.key))
        except BaseException:
            await self._clean(revision.key, group, 0)
            raise
        finally:
            listener.close()
            for descriptor in (log_fd, *descriptors):
                os.close(descriptor)
        prepared = Prepared(
            services=tuple(answer["services"]),
            descriptors=base64.b64decode(answer["descriptors"]),
            start_note=answer.get("note", ""),
            degraded=tuple(answer.get("degraded", ())),
        )
        self._slow_down(revision, group)
        return ImageTemplate(channel, prepared, group, answer["pid"])

    @staticmethod
    def _slow_down(revision: Revision, group: Group | None) -> None:
        """Caps the CPU of a template that is loaded.

        Not before: an import may take what is free, it has a time limit. Afterwards only forks are to be paid for.
        """
        if group is not None and revision.limits.cpu_millis is not None:
            group.limit(Limits(cpu_millis=max(revision.limits.cpu_millis, _LEAST_CPU_MILLIS)))

    async def _within(
        self, revision: Revision, base: ControlChannel, group: Group | None, request: Coroutine[None, None, Message]
    ) -> Message:
        """The answer to a load; an import that takes too long is ended."""
        asked = asyncio.ensure_future(request)
        try:
            async with asyncio.timeout(revision.start_timeout_s):
                return await asyncio.shield(asked)
        except (TimeoutError, asyncio.CancelledError) as error:
            await self._end_load(revision.key, base, group)
            with contextlib.suppress(TimeoutError, ControlClosed):
                async with asyncio.timeout(_QUIT_TIMEOUT_S):
                    await asked
            if isinstance(error, asyncio.CancelledError):
                raise
            raise errors.AgentFailed(
                f"agent '{revision.agent}' did not finish its import within {revision.start_timeout_s:g}s"
                + self._logs.last_words(revision.agent, "template")
            ) from None
        except ControlClosed:
            raise errors.Unavailable("the template process ended; try again") from None

    async def _end_load(self, key: str, base: ControlChannel, group: Group | None) -> None:
        if group is not None:
            group.kill()
            return
        answer = await base.request({"op": "children"})
        if pid := answer["children"].get(key):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _spec(self, revision: Revision, workers: Path) -> TemplateSpec:
        return TemplateSpec(
            key=revision.key,
            agent=revision.agent,
            bundle=revision.bundle,
            entrypoint=revision.entrypoint,
            services=list(revision.services),
            env=dict(revision.env),
            log_level=revision.log_level,
            sandbox=SandboxSpec(
                host_network=revision.host_network,
                uid_base=self.uid_base(revision),
                workers_dir=str(workers),
                kernel_dir=str(peers.kernel_dir(self._home, revision.agent)),
                devices=gpus.devices(revision.wants_gpus),
                system_calls=_system_calls(revision),
                may_be_root=revision.may_be_root,
                egress=list(revision.egress),
                secrets=bool(revision.secrets),
            ),
        )

    async def _base(self, venv: str) -> ControlChannel:
        name = f"b-{short(venv)}"
        async with self._locks.setdefault(name, asyncio.Lock()):
            channel = self._bases.get(name)
            if channel is None or channel.closed.is_set():
                channel = await self._start_base(name, venv)
                self._bases[name] = channel
            return channel

    async def _start_base(self, name: str, venv: str) -> ControlChannel:
        # sys.executable, not resolved: a venv is found by the path of its own link.
        python = str(Path(venv, "bin", "python")) if venv else sys.executable
        if (old := self._processes.get(name)) and old.returncode is None:
            old.kill()  # its channel broke, nobody talks to it any more
            await old.wait()
        listener = listen(self._sockets / name)
        log_fd = self._logs.open_platform("templates")
        try:
            process = await asyncio.create_subprocess_exec(
                python, "-m", "agent_worker.template", "--listen-fd", str(listener.fileno()),
                cwd="/", env=self._environment, pass_fds=[listener.fileno()], start_new_session=True,
                stdin=asyncio.subprocess.DEVNULL, stdout=log_fd, stderr=log_fd,
            )  # fmt: skip
            self._processes[name] = process
            channel = await ControlChannel.connect(self._sockets / name, partial(self._on_event, name))
        finally:
            listener.close()
            os.close(log_fd)
        try:
            async with asyncio.timeout(_BASE_TIMEOUT_S):
                await channel.request({"op": "children"})
        except (ControlClosed, TimeoutError):
            await channel.close()
            raise errors.Unavailable(
                f"the template process of {python} did not start; see {self._logs.platform_path('templates')}"
            ) from None
        return channel

    def _on_event(self, key: str, message: Message) -> None:
        """From the template of a revision, which may say anything: what is wrong raises, and closes its channel."""
        if message["event"] != "exit":
            return
        pid, status = message["pid"], message["status"]
        os.waitstatus_to_exitcode(status)
        if not isinstance(pid, int):
            raise TypeError(f"{pid!r} is no pid")
        future = self.exit_status(key, pid)
        if not future.done():
            future.set_result(status)

    async def _clean(self, key: str, group: Group | None, pid: int) -> None:
        self._socket(key).unlink(missing_ok=True)
        if group is not None:
            await asyncio.to_thread(group.remove)
        elif pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _system_calls(revision: Revision) -> str:
    if seccomp.missing():
        return "any"
    return "restricted" if revision.restricted else "default"


async def _quit(channel: ControlChannel) -> None:
    with contextlib.suppress(ControlClosed, TimeoutError):
        async with asyncio.timeout(2 * _QUIT_TIMEOUT_S):
            await channel.request({"op": "quit"})
            await channel.closed.wait()
    await channel.close()
