"""`agent run --dev`: builds and runs a project, follows its logs, and with --hot-reload every change of its files."""

import importlib.util
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from agentruntime import errors, names
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_pb2
from agentruntime.cli import deployment, logs, output
from agentruntime.cli.build import build
from agentruntime.client.sync import Client
from agentruntime.manifest import FILE_NAME, AgentManifest
from agentruntime.packing import left_out

# An editor may write several files, or one in several steps: a change is whole when so long nothing more came. At
# most so long is waited for that.
_QUIET_MS = 20
_MOST_MS = 200
# After so long without a change there is an empty one.
_ROUND_MS = 500
# Calls of a developer that hang must not hold up what was changed.
_GRACE_S = 2
_LOGS_RETRY_S = 1.0


@dataclass(frozen=True)
class Development:
    """What `agent run --dev` was asked for."""

    # The request as the other flags and the configuration make it.
    request: pool_pb2.RunAgentRequest
    # Where the image is built from; None runs one that is built.
    project: Path | None
    hot_reload: bool

    @property
    def agent(self) -> str:
        return self.request.agent or names.ImageReference.parse(self.request.image).agent


def development(
    request: pool_pb2.RunAgentRequest, *, project: Path | None, hot_reload: bool, local: bool
) -> Development:
    """The request with what --dev sets where nobody said otherwise: DEBUG, never asleep, open to a debugger.

    Args:
        request: as without --dev.
        project: the one that was named, else the current directory is looked at.
        hot_reload: whether changes are to be followed.
        local: whether the platform is this machine's, so that its Python can be looked at.

    Raises:
        InvalidArgument: there is no project to follow.
    """
    changed = pool_pb2.RunAgentRequest()
    changed.CopyFrom(request)
    settings = changed.settings
    settings.log_level = settings.log_level or "DEBUG"
    if not settings.scaling.HasField("min_replicas"):
        settings.scaling.min_replicas = 1
    isolated = settings.network != pool_pb2.NETWORK_MODE_HOST
    if not settings.serving.HasField("debug") and local and isolated and _has_debugger(settings.venv):
        settings.serving.debug = True
    found = _project(changed.image, project)
    if hot_reload and found is None:
        name = names.ImageReference.parse(changed.image).agent
        raise errors.InvalidArgument(
            f"--hot-reload needs the project: go to the folder whose {FILE_NAME} says `name: {name}`, or name it "
            "with --project"
        )
    return Development(changed, found, hot_reload)


def develop(client: Client, of: Development) -> None:
    """Builds, runs, and follows, until Ctrl-C; the agent goes on then.

    Raises:
        AgentError: it could not be built or run, and nobody follows changes.
    """
    changes: Iterator[set[Any]] = _changes(of.project) if of.hot_reload and of.project is not None else iter(())
    next(changes, None)  # from here on it watches: a save while the first image is built counts, too
    try:
        _bring_up(client, of)
    except errors.AgentError as error:
        if not of.hot_reload:
            raise
        _say_failure(error)
    try:
        with _logs_followed(client, of.agent):
            if of.hot_reload:
                output.note(f"watching {of.project} for changes, until Ctrl-C")
                for changed in changes:
                    if changed:
                        _reload(client, of)
            else:
                threading.Event().wait()
    except KeyboardInterrupt:
        output.note(f"\n{of.agent} goes on; `agent stop {of.agent}` stops it")


def _bring_up(client: Client, of: Development) -> None:
    """Makes the agent run what the project holds now, with the settings that were asked for."""
    if of.project is not None:
        build(client, of.project, of.request.image, quiet=False, keep_requirements=True)
    if _runs(client, of.agent):
        _update(client, of)
    # Also after an update: it may have been asleep.
    after = client.pool.RunAgent(of.request, timeout=deployment.TIMEOUT_S).deployment
    deployment.show(after, as_json=False)


def _runs(client: Client, agent: str) -> bool:
    try:
        found = client.pool.GetDeployment(pool_pb2.GetDeploymentRequest(agent=agent)).deployment
    except errors.NotFound:
        return False
    return not found.stopped


def _update(client: Client, of: Development) -> pool_pb2.Deployment:
    request = pool_pb2.UpdateAgentRequest(
        name=of.agent,
        image=of.request.image,
        settings=of.request.settings,
        allow_unenforced=of.request.allow_unenforced,
    )
    request.grace_period.FromSeconds(_GRACE_S)
    return client.pool.UpdateAgent(request, timeout=deployment.TIMEOUT_S).deployment


def _reload(client: Client, of: Development) -> None:
    """Rolls the agent to what the project holds now; what goes wrong is said, and the old workers go on."""
    began_s = time.monotonic()
    try:
        assert of.project is not None
        image = build(client, of.project, of.request.image, quiet=True, keep_requirements=True)
        if not _runs(client, of.agent):
            _bring_up(client, of)
            return
        before = client.pool.GetDeployment(pool_pb2.GetDeploymentRequest(agent=of.agent)).deployment
        if before.image_digest == image.digest:
            return
        after = _update(client, of)
    except errors.AgentError as error:
        _say_failure(error)
        return
    output.note(f"{of.agent} reloaded in {time.monotonic() - began_s:.2f}s, revision {after.revision}")


def _say_failure(error: errors.AgentError) -> None:
    first, _, rest = error.message.strip().partition("\n")
    output.note(f"error: {first}" + (f"\n{rest}" if rest else "") + "\nnothing changed; the next save tries again")


def _changes(project: Path) -> Iterator[set[Any]]:
    """The changes of what an image of the project would hold, since the time before; empty where there was none."""
    import watchfiles  # noqa: PLC0415 — only who follows changes waits for it

    def counts(_kind: watchfiles.Change, path: str) -> bool:
        place = PurePath(path)
        return not left_out(place.relative_to(project) if place.is_relative_to(project) else place)

    return watchfiles.watch(
        project, watch_filter=counts, debounce=_MOST_MS, step=_QUIET_MS, rust_timeout=_ROUND_MS, yield_on_timeout=True
    )


@contextmanager
def _logs_followed(client: Client, agent: str) -> Iterator[None]:
    """Shows what the agent's workers write from now on."""
    over = threading.Event()

    def follow() -> None:
        request = pool_pb2.StreamLogsRequest(name=agent, follow=True, tail=0)
        while not over.is_set():
            try:
                for entry in client.pool.StreamLogs(request, timeout=math.inf):
                    print(logs.readable(entry.line, entry.worker_id), flush=True)
            except errors.AgentError:
                # There is no agent yet, or the pool is started again.
                over.wait(_LOGS_RETRY_S)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


def _project(image: str, named: Path | None) -> Path | None:
    """The project's folder, absolute: the one named, else the current one if it is the image's."""
    reference = names.ImageReference.parse(image)
    if reference.digest:
        return None
    if named is not None:
        AgentManifest.load(named)
        return named.resolve()
    here = Path.cwd()
    if not (here / FILE_NAME).is_file() or AgentManifest.load(here).name != reference.agent:
        return None
    return here.resolve()


def _has_debugger(venv: str) -> bool:
    if venv:
        return any(Path(venv).glob("lib/python*/site-packages/debugpy/__init__.py"))
    return importlib.util.find_spec("debugpy") is not None
