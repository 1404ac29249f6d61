"""What containers of a revision are made from: its container image, and what an import of its code has told."""

import asyncio
import base64
import contextlib
import json
import shutil
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from agentruntime import errors, launch, log

from agent_pool.cgroups.base import Counters
from agent_pool.drivers import docker_calls, docker_request, exits, slots
from agent_pool.drivers.base import Prepared, Revision
from agent_pool.drivers.docker_engine import Engine

if TYPE_CHECKING:
    import docker

# As many as `Known` keeps.
_MOST_DESCRIBED = 1000
# Of a message, in characters: it is kept with its deployment, and shown.
_LONGEST_WORDS = 16_384
_log = log.get("agent_pool.docker")


class Images(Protocol):
    """Makes container images of agent images."""

    async def ensure(self, digest: str, bundle: Path, base_image: str, progress: Callable[[str], None]) -> str:
        """The id of the container image of an agent image; it is built if the engine has none."""


@dataclass(frozen=True)
class Loaded:
    """A revision of which containers can be started."""

    # Of the container image.
    image: str
    prepared: Prepared


class LoadedRevisions:
    """Of one pool.

    Args:
        engine: has the images.
        images: makes them, given a client of the engine.
        pool: names this pool, see `docker_request.worker`.
        names: what the names of its containers begin with.
        places: a directory with a subdirectory for each container, by which a pool that takes over knows that there
            may be some.
    """

    def __init__(
        self,
        engine: Engine,
        images: "Callable[[docker.DockerClient], Images]",
        pool: str,
        names: str,
        places: Path,
    ) -> None:
        self._engine = engine
        self._make_images = images
        self._images: Images | None = None
        self._pool = pool
        self._names = names
        self._places = places
        self._loaded: dict[str, Loaded] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        # By image and environment: revisions come and go, and an import takes a second.
        self._described: OrderedDict[Hashable, Prepared] = OrderedDict()

    def keys(self) -> Collection[str]:
        """Of the revisions that are loaded."""
        return list(self._loaded)

    async def get(self, revision: Revision, uid: int) -> Loaded:
        """Makes sure that containers of it can be started.

        Raises:
            AgentFailed: its code does not import, or its image cannot be built.
            AgentError: the engine refuses.
        """
        async with self._locks.setdefault(revision.key, asyncio.Lock()):
            loaded = self._loaded.get(revision.key)
            if loaded is None:
                image = await self._image(revision)
                loaded = self._loaded[revision.key] = Loaded(image, await self._describe(revision, image, uid))
            return loaded

    def forget(self, key: str) -> None:
        """A revision's image is to be looked for again, because it is gone, or nobody needs it now."""
        self._loaded.pop(key, None)
        if (lock := self._locks.get(key)) and not lock.locked():
            del self._locks[key]

    async def _image(self, revision: Revision) -> str:
        if self._images is None:
            self._images = self._make_images(await self._engine.connect())

        def progress(line: str) -> None:
            _log.info("container image", agent=revision.agent, progress=line)

        bundle = Path(revision.bundle)
        image = await self._images.ensure(revision.image_digest, bundle, revision.base_image, progress)
        if volumes := await self._engine.ask(partial(docker_calls.volumes, image)):
            raise errors.FailedPrecondition(
                f"the base image of agent '{revision.agent}' has volumes ({', '.join(volumes)}), which its workers "
                "could write to whatever is asked for; name a base_image without any in agent.yaml"
            )
        return image

    async def _describe(self, revision: Revision, image: str, uid: int) -> Prepared:
        known = (image, tuple(sorted(revision.env.items())))
        prepared = self._described.get(known)
        if prepared is None:
            prepared = self._described[known] = await self._import(revision, image, uid)
            if len(self._described) > _MOST_DESCRIBED:
                self._described.popitem(last=False)
        return prepared

    async def _import(self, revision: Revision, image: str, uid: int) -> Prepared:
        """Imports the agent's code once, in a container like those of its workers."""
        config = docker_request.description(revision, image=image, user=slots.user(uid), pool=self._pool)
        name = docker_request.name(self._names)
        # Nothing is in the directory.
        place = self._places / f"describe-{revision.key}"
        place.mkdir(parents=True, exist_ok=True)
        creating = asyncio.ensure_future(self._engine.ask(partial(docker_calls.launched, config, name)))
        try:
            container, _ = await asyncio.shield(creating)
            ended = self._engine.ask(partial(docker_calls.awaited, container, revision.start_timeout_s))
            state, said, complained = await ended
        finally:
            await asyncio.wait([creating])
            with contextlib.suppress(asyncio.CancelledError):
                creating.exception()  # seen, whoever was cancelled
            await self._engine.ask(partial(docker_calls.removed, name))
            await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)
        if state is None:
            raise errors.AgentFailed(
                f"the import of agent '{revision.agent}' took longer than {revision.start_timeout_s:g}s and was ended"
            )
        status, oom_killed = docker_request.ended(state)
        return described(revision, said, exits.explain(status, Counters(oom_kills=oom_killed), revision.limits),
                         complained)  # fmt: skip


def described(revision: Revision, said: str, reason: str, complained: str) -> Prepared:
    """What became known of a revision.

    Args:
        revision: it.
        said: by `--describe`: a line of JSON, see `agent_worker.container`.
        reason: why the process ended.
        complained: the end of what it printed otherwise.

    Raises:
        AgentFailed: the import failed.
    """
    answer: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        answer = json.loads(said)
    # Import code can write an answer of its own: each field is of its type and any message can hold it, or is none.
    if isinstance(answer, dict) and "error" in answer:
        trace = _text(answer.get("traceback"))[-_LONGEST_WORDS:]
        raise errors.AgentFailed(
            f"agent '{revision.agent}' failed to import: {_text(answer['error'])[:_LONGEST_WORDS]}"
            + (f"\n{trace}" if trace else "")
        )
    try:
        if len(said) > launch.LONGEST_MESSAGE // 2:  # as of a native template
            raise ValueError(said[:1])
        return Prepared(
            services=tuple(_name(each) for each in answer["services"]),
            descriptors=base64.b64decode(answer["descriptors"], validate=True),
        )
    except (TypeError, KeyError, ValueError):
        words = f":\n{_text(complained)[-_LONGEST_WORDS:]}" if complained else ""
        raise errors.AgentFailed(f"agent '{revision.agent}' failed to import: {reason}{words}") from None


def _name(value: object) -> str:
    """Raises TypeError or ValueError if it is not one that any message can hold."""
    if not isinstance(value, str):
        raise TypeError(value)
    value.encode()
    return value


def _text(value: object) -> str:
    """A string that any message can hold, JSON's lone surrogates being none; "" for what is no string."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else ""
