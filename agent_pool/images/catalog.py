"""All that is done with images, over the store and the bundles beside it."""

import asyncio
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from agentruntime import errors, files
from agentruntime.home import Home
from agentruntime.manifest import AgentManifest
from agentruntime.names import ImageReference

from agent_pool.images import build, builtin, project, unpack
from agent_pool.images.layout import ImageLayout, StoredImage


@dataclass(frozen=True)
class OpenImage:
    """An image that can be run."""

    image: StoredImage
    bundle: Path
    manifest: AgentManifest


class Catalog:
    """Images of one runtime directory.

    Args:
        pip: argv of the pip that installs requirements.
        in_use: tells the digests that agents run from.
    """

    def __init__(self, home: Home, pip: list[str], in_use: Callable[[], Collection[str]]) -> None:
        self._images = home.images
        self._store = ImageLayout(self._images)
        self._bundles = home.bundles
        self._stamps = home.state / "builtin-images.json"
        self._pip = pip
        self._in_use = in_use
        # The index is read, changed and written; one build at a time is also kinder to the machine.
        self._writing = asyncio.Lock()
        self._manifests: dict[str, AgentManifest] = {}

    async def prepare(self) -> None:
        """Makes the store, with the built-in images as they are installed now."""
        self._store.create()
        async with self._writing:
            await builtin.ensure(self._store, self._stamps)

    async def open(self, reference: str) -> OpenImage:
        """Finds an image and unpacks it, if it is not unpacked yet.

        Raises:
            ImageNotFound, InvalidArgument: the reference.
            DataLoss: the store is damaged.
            DiskFull: there is no room for it.
        """
        image = self._store.find(ImageReference.parse(reference))
        bundle = unpack.bundle_path(self._bundles, image.digest)
        manifest = self._manifests.get(image.digest)
        if manifest is None or not bundle.is_dir():
            with files.room_in(self._bundles):
                await asyncio.to_thread(unpack.unpack, self._store, image.digest, self._bundles)
            manifest = AgentManifest.load(bundle / "app")
            self._manifests[image.digest] = manifest
        return OpenImage(image, bundle, manifest)

    def images(self) -> list[StoredImage]:
        return self._store.images()

    async def build(
        self, archive: IO[bytes], reference: str, progress: Callable[[str], None], *, keep_requirements: bool = False
    ) -> StoredImage:
        """Builds an image of a project that comes as a tar. See `build.build` and `project.extract`."""
        async with self._writing:
            with tempfile.TemporaryDirectory(prefix="agentruntime-build-") as scratch:
                directory = Path(scratch)
                await asyncio.to_thread(project.extract, archive, directory)
                with files.room_in(self._images):
                    image = await build.build(
                        self._store,
                        directory,
                        reference,
                        pip=self._pip,
                        progress=progress,
                        keep_requirements=keep_requirements,
                    )
            await self._collect()
            return image

    async def tag(self, reference: str, new_reference: str) -> StoredImage:
        """Gives an image one more tag, away from whatever has it.

        Raises:
            ImageNotFound, InvalidArgument: a reference.
            FailedPrecondition: the new one is built in.
        """
        new = ImageReference.parse(new_reference)
        if new.digest:
            raise errors.InvalidArgument(
                f"'{new_reference}' is a digest, which nobody can choose; write {new.name}:tag"
            )
        async with self._writing:
            image = self._store.find(ImageReference.parse(reference))
            if any(each.reference == str(new) and each.built_in for each in self._store.images()):
                raise errors.FailedPrecondition(f"image '{new}' is built in and stays; choose another tag")
            tagged = self._store.tag(new, image.digest, image.created_at)
            await self._collect()
            return tagged

    async def remove(self, reference: str) -> None:
        """Removes a tag. See `ImageLayout.remove`."""
        async with self._writing:
            self._store.remove(ImageReference.parse(reference))
            await self._collect()

    def find(self, reference: str) -> StoredImage:
        return self._store.find(ImageReference.parse(reference))

    async def _collect(self) -> None:
        """Removes bundles that no tag and no agent needs."""
        kept = {image.digest for image in self._store.images()} | set(self._in_use())
        kept_paths = {unpack.bundle_path(self._bundles, digest) for digest in kept}
        for bundle in self._bundles.iterdir():
            if bundle not in kept_paths and not bundle.name.startswith("."):
                digest = f"sha256:{bundle.name}"
                self._manifests.pop(digest, None)
                await asyncio.to_thread(unpack.remove, self._bundles, digest)
