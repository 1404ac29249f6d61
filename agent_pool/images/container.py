"""Container images of agent images: made in the engine by the recipe, found there by their labels."""

import asyncio
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import docker
import requests
from agentruntime import errors
from agentruntime.names import ImageReference
from docker.errors import APIError, DockerException, NotFound

from agent_pool.images import recipe
from agent_pool.images.recipe import AGENT_DIRECTORY, AGENT_IMAGE_LABEL, Recipe

# Between two lines of a build: requirements may be compiled without a word.
_SILENCE_S = 1800
_ERROR_LINES = 8
# What an image is called in the engine if nobody gives it another name: one without any would be pruned.
_OWN_NAME = "agentruntime"


class ContainerImages:
    """Of one engine.

    Args:
        client: of the engine.
        default_base: what images are made from whose agent.yaml names no base_image.
    """

    def __init__(self, client: docker.DockerClient, default_base: str) -> None:
        self._client = client
        self._default_base = default_base
        # Two starts of one agent make one image; one build at a time is also kinder to the machine.
        self._building = asyncio.Lock()

    async def ensure(self, digest: str, bundle: Path, base_image: str, progress: Callable[[str], None]) -> str:
        """The id of an agent image's container image, which is made if the engine has none.

        Args:
            digest: of the agent image.
            bundle: where that is unpacked.
            base_image: what it is made from; "" for the default.
            progress: hears what is being done, for people; from another thread.

        Raises:
            FailedPrecondition: it cannot be made; ends with what the build said last.
            Unavailable: the engine does not answer.
        """
        wanted = await asyncio.to_thread(recipe.recipe, digest, bundle, base_image or self._default_base)
        if (found := await asyncio.to_thread(self._find, wanted)) is not None:
            return found
        async with self._building:
            if (found := await asyncio.to_thread(self._find, wanted)) is not None:
                return found  # made while this waited for its turn
            progress(f"making a container image of {wanted.agent}")
            given_up = threading.Event()
            try:
                return await asyncio.to_thread(self._build, wanted, progress, given_up)
            finally:
                given_up.set()

    async def tag(self, image_id: str, reference: ImageReference) -> None:
        """Gives an image of the engine a name."""
        await asyncio.to_thread(self._tag, image_id, reference.name, reference.tag)

    async def made(self) -> Mapping[str, str]:
        """The newest container image of each agent image: its id by that one's digest.

        Raises:
            Unavailable: the engine does not answer.
        """
        return await asyncio.to_thread(self._made)

    async def remove(self, digest: str) -> None:
        """Removes an agent image's container images.

        Raises:
            FailedPrecondition: a container that runs is of one.
        """
        await asyncio.to_thread(self._remove, digest)

    async def extract(self, reference: ImageReference, target: IO[bytes]) -> bool:
        """Writes the code of the agent that an image of the engine holds as a tar; False if there is no such image.

        Args:
            reference: what the image is called in the engine; for a digest, the agent image that it was made of.
            target: a file.

        Raises:
            Unavailable: the engine does not answer.
        """
        return await asyncio.to_thread(self._extract, reference, target)

    def _find(self, wanted: Recipe) -> str | None:
        with _engine():
            images = self._client.images.list(filters={"label": wanted.labels})
        return str(images[0].id) if images else None

    def _build(self, wanted: Recipe, progress: Callable[[str], None], given_up: threading.Event) -> str:
        with tempfile.TemporaryFile() as context, _engine():
            wanted.write(context)
            context.seek(0)
            events = self._client.api.build(
                fileobj=context,
                custom_context=True,
                tag=f"{_OWN_NAME}/{wanted.agent}:{wanted.image_digest.removeprefix('sha256:')[:12]}",
                rm=True,
                forcerm=True,
                decode=True,
                timeout=_SILENCE_S,
            )
            return _built(wanted, events, progress, given_up)

    def _tag(self, image_id: str, name: str, tag: str) -> None:
        with _engine():
            self._client.images.get(image_id).tag(name, tag)

    def _made(self) -> dict[str, str]:
        with _engine():
            images = self._client.api.images(filters={"label": AGENT_IMAGE_LABEL})
        oldest_first = sorted(images, key=lambda image: int(image["Created"]))
        return {str(image["Labels"][AGENT_IMAGE_LABEL]): str(image["Id"]) for image in oldest_first}

    def _remove(self, digest: str) -> None:
        with _engine():
            for image in self._client.images.list(filters={"label": f"{AGENT_IMAGE_LABEL}={digest}"}):
                try:
                    # All its names, and also if a container that has ended is of it.
                    self._client.images.remove(str(image.id), force=True)
                except NotFound:
                    continue  # somebody else was quicker

    def _extract(self, reference: ImageReference, target: IO[bytes]) -> bool:
        with _engine():
            image_id = self._named(reference)
            if image_id is None:
                return False
            container = self._client.containers.create(image_id, network_mode="none")
            try:
                pieces, _ = container.get_archive(f"{AGENT_DIRECTORY}/app/.")
                target.writelines(pieces)
            finally:
                container.remove(force=True, v=True)
        return True

    def _named(self, reference: ImageReference) -> str | None:
        """The id of the engine's image that is an agent's and is called so."""
        if reference.digest:
            return self._made().get(reference.digest)
        try:
            image = self._client.images.get(f"{reference.name}:{reference.tag}")
        except NotFound:
            return None
        return str(image.id) if AGENT_IMAGE_LABEL in image.labels else None


@contextmanager
def _engine() -> Iterator[None]:
    """Around what is asked of the engine. Raises Unavailable or FailedPrecondition instead of the SDK's errors."""
    try:
        yield
    except APIError as error:
        raise errors.FailedPrecondition(f"the container engine refuses: {error.explanation or error}") from None
    except (DockerException, requests.RequestException) as error:
        raise errors.Unavailable(f"the container engine does not answer: {error}") from None


def _built(
    wanted: Recipe, events: Iterator[dict[str, Any]], progress: Callable[[str], None], given_up: threading.Event
) -> str:
    """The id of the image that a build's events tell of.

    Raises:
        FailedPrecondition: the build failed; ends with what it said last.
    """
    said_last: deque[str] = deque(maxlen=_ERROR_LINES)
    lines = 0
    image_id = ""
    # To their end: the image has its name only then.
    for event in events:
        if given_up.is_set():
            raise errors.Cancelled("nobody waits for this container image any more")
        if "error" in event:
            raise errors.FailedPrecondition(_failure(wanted, str(event["error"]), said_last, lines))
        if "ID" in event.get("aux", {}):
            image_id = str(event["aux"]["ID"])
        for line in str(event.get("stream", "")).splitlines():
            if line.strip() and not line.startswith((" --->", "Removing intermediate")):
                said_last.append(line.strip())
                lines += 1
                progress(line.strip())
    if not image_id:
        raise errors.Unavailable("the container engine ended in the middle of a build")
    return image_id


def _failure(wanted: Recipe, error: str, said_last: Iterable[str], lines: int) -> str:
    """Of a build that said so many lines."""
    if lines <= 1:
        # Nothing ran yet.
        return (
            f"the container engine has no base image {wanted.base_image} and cannot pull it ({error}); "
            "pull it, or name another as base_image in agent.yaml"
        )
    last = "\n".join([*said_last, error])
    return f"the container image of {wanted.agent} cannot be made:\n{last}"
