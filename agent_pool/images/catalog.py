"""All that is done with images, over the store and the bundles beside it."""

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from agentruntime import errors, files, log
from agentruntime.home import Home
from agentruntime.manifest import AgentManifest
from agentruntime.names import ImageReference
from agentruntime.signing import Signature

from agent_pool.images import build, builtin, project, recipe, signatures, unpack
from agent_pool.images.layout import ImageLayout, StoredImage
from agent_pool.images.thread import in_thread
from agent_pool.images.trust import Trust

if TYPE_CHECKING:
    from agent_pool.images.container import ContainerImages

Say = Callable[[str], None]
# In the store's directory: an image that comes from a registry, until it is whole.
_COMING = ".pull."
# Where an image was found.
LOCAL, DOCKER = "local", "docker"
_log = log.get("agent_pool.images")


async def no_engine() -> "ContainerImages":
    """Stands for the container images of a pool without an engine."""
    raise errors.FailedPrecondition("this pool has no container engine")


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
        containers: the engine's images; raises FailedPrecondition if no engine answers.
        default_base: what container images are made from whose agent.yaml names no base_image.
        trust: which images may run.
    """

    def __init__(
        self,
        home: Home,
        pip: list[str],
        in_use: Callable[[], Collection[str]],
        containers: "Callable[[], Awaitable[ContainerImages]]" = no_engine,
        default_base: str = "",
        *,
        trust: Trust | None = None,
    ) -> None:
        self._trust = trust or Trust()
        self._images = home.images
        self._store = ImageLayout(self._images)
        self._bundles = home.bundles
        self._stamps = home.state / "builtin-images.json"
        self._pip = pip
        self._in_use = in_use
        self._containers = containers
        self._default_base = default_base
        # The index is read, changed and written; one build at a time is also kinder to the machine.
        self._writing = asyncio.Lock()
        self._manifests: dict[str, AgentManifest] = {}

    async def prepare(self) -> None:
        """Makes the store, with the built-in images as they are installed now."""
        self._store.create()
        # Of a pool that was killed meanwhile.
        for left in self._images.glob(f"{_COMING}*"):
            await asyncio.to_thread(shutil.rmtree, left)
        await asyncio.to_thread(unpack.clear, self._bundles)
        self._store.clear_scratch()
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
            manifest = project.load_manifest(bundle / "app")
            self._manifests[image.digest] = manifest
        return OpenImage(image, bundle, manifest)

    def images(self) -> list[StoredImage]:
        return self._store.images()

    # --- signatures ----------------------------------------------------------------------------------------------

    def check_trust(self, reference: str, digest: str) -> None:
        """Checks that an image may run; the built-in ones may: they are the platform's own files.

        Raises:
            ImageNotTrusted: the pool demands signatures, and no trusted key signed this one under its name.
            FailedPrecondition: the trusted keys cannot be read.
        """
        name = ImageReference.parse(reference).name
        if self._trust.required and not self._store.is_built_in(name, digest):
            self.signed_by(reference, digest)

    def signed_by(self, reference: str, digest: str) -> str:
        """The name of the trusted key that signed an image under its name. Raises as `Trust.signed_by`."""
        return self._trust.signed_by(reference, digest, self._store.signatures(digest))

    def signatures(self, digest: str) -> list[Signature]:
        """All that lie beside an image, by whomever."""
        return self._store.signatures(digest)

    async def add_signature(self, reference: str, signature: Signature) -> None:
        """Puts a signature beside an image, by whomever it is.

        Raises:
            ImageNotFound: there is no such image.
            InvalidArgument: it is no signature of that image.
            ResourceExhausted: the image has too many.
        """
        async with self._changing():
            image = self._store.find(ImageReference.parse(reference))
            signatures.check(signature, image.digest)
            with files.room_in(self._images):
                self._store.add_signatures(image.digest, [signature])

    # --- build, tag, remove --------------------------------------------------------------------------------------

    async def build(
        self, archive: IO[bytes], reference: str, progress: Callable[[str], None], *, keep_requirements: bool = False
    ) -> StoredImage:
        """Builds an image of a project that comes as a tar. See `build.build` and `project.extract`.

        Raises:
            InvalidArgument: the reference is a digest.
        """
        if reference and (asked := ImageReference.parse(reference)).digest:
            raise errors.InvalidArgument(
                f"'{reference}' is a digest; an image is built under a tag, like {asked.name}:1.0.0"
            )
        return await self._take_in(archive, reference, progress, keep_requirements=keep_requirements)

    async def _take_in(
        self, archive: IO[bytes], reference: str, progress: Say, *, keep_requirements: bool
    ) -> StoredImage:
        async with self._changing():
            with tempfile.TemporaryDirectory(prefix="agentruntime-build-") as scratch:
                directory = Path(scratch)
                await in_thread(lambda _: project.extract(archive, directory))
                with files.room_in(self._images):
                    return await build.build(
                        self._store,
                        directory,
                        reference,
                        pip=self._pip,
                        progress=progress,
                        keep_requirements=keep_requirements,
                    )

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
        async with self._changing():
            image = self._store.find(ImageReference.parse(reference))
            if any(each.reference == str(new) and each.built_in for each in self._store.images()):
                raise errors.FailedPrecondition(f"image '{new}' is built in and stays; choose another tag")
            return self._store.tag(new, image.digest, image.created_at)

    async def remove(self, reference: str) -> None:
        """Removes a tag. See `ImageLayout.remove`."""
        async with self._changing():
            self._store.remove(ImageReference.parse(reference))

    async def obtain(self, reference: str, *, from_engine: bool = True) -> str:
        """Has an image in the store, from wherever it is found first: the store, the engine, its registry.

        Args:
            reference: what it is called.
            from_engine: may be false, for to take one out of the engine pip is run, as its agent.yaml says, with all
                that the pool may; and what is in the engine may be there as some agent's base image.

        Returns:
            Where it was: "local", "docker", or the registry's host.

        Raises:
            ImageNotFound: it is nowhere.
            AgentError: as `pull`.
        """
        wanted = ImageReference.parse(reference)
        try:
            self._store.find(wanted)
            return LOCAL
        except errors.ImageNotFound:
            # Nor is pip run for what nobody vouches for.
            if from_engine and not self._trust.required and await self._obtain_from_engine(wanted):
                return DOCKER
            if not wanted.registry:
                raise
        await self.pull(reference, lambda line: _log.info("image comes", image=reference, progress=line))
        return wanted.registry

    async def pull(self, reference: str, progress: Say) -> StoredImage:
        """Takes an image from its registry into the store. See `registry.pull`.

        Raises:
            InvalidArgument: the reference names no registry.
        """
        wanted = _with_registry(reference)
        # Imported by those alone who use it: it takes a tenth of a second.
        from agent_pool.images import registry  # noqa: PLC0415 — as above

        with files.room_in(self._images), tempfile.TemporaryDirectory(dir=self._images, prefix=_COMING) as scratch:
            digest, signed = await in_thread(
                lambda given_up: registry.pull(wanted, Path(scratch), progress, given_up)
            )
            async with self._changing():
                return await in_thread(lambda _: self._store.adopt(wanted, digest, Path(scratch), signed))

    async def push(self, reference: str, destination: str, progress: Say) -> str:
        """Copies an image to a registry, and returns its digest. See `registry.push`.

        Args:
            reference: what it is called here.
            destination: what it is called there; "" for the same.
            progress: hears what is being done, for people.

        Raises:
            ImageNotFound: it is not here.
            InvalidArgument: the name there has no registry.
        """
        digest = self.find(reference).digest
        to = _with_registry(destination or reference)
        from agent_pool.images import registry  # noqa: PLC0415 — as in `pull`

        await in_thread(lambda given_up: registry.push(self._store, digest, to, progress, given_up))
        return digest

    # --- in the container engine ---------------------------------------------------------------------------------

    async def dockerfile(self, reference: str) -> str:
        """By which a container image of an image is made."""
        opened = await self.open(reference)
        base = opened.manifest.base_image or self._default_base
        made_by = await asyncio.to_thread(recipe.recipe, opened.image.digest, opened.bundle, base)
        return made_by.dockerfile

    async def engine(self) -> "ContainerImages":
        """The engine's images. Raises FailedPrecondition if no engine answers."""
        return await self._containers()

    async def make_container_image(self, reference: str, progress: Say) -> str:
        """Has a container image of an image in the engine, under the same name, and returns its id.

        Raises:
            FailedPrecondition: no engine answers, or it cannot be made.
        """
        opened = await self.open(reference)
        engine = await self.engine()
        made = await engine.ensure(opened.image.digest, opened.bundle, opened.manifest.base_image or "", progress)
        await engine.tag(made, ImageReference.parse(opened.image.reference))
        return made

    async def container_images(self) -> Mapping[str, str]:
        """The engine's id of each image's container image, by the image's digest; empty where no engine answers."""
        try:
            return await (await self.engine()).made()
        except (errors.FailedPrecondition, errors.Unavailable):
            return {}

    async def _remove_container_image(self, digest: str) -> None:
        try:
            await (await self.engine()).remove(digest)
        except (errors.FailedPrecondition, errors.Unavailable) as error:
            # Another pool's container may be of it; it does no harm.
            _log.info("a container image stays", image=digest, reason=error.message)

    async def _obtain_from_engine(self, wanted: ImageReference) -> bool:
        try:
            engine = await self.engine()
        except errors.FailedPrecondition:
            return False
        with tempfile.TemporaryFile() as archive:
            if not await engine.extract(wanted, archive):
                return False
            archive.seek(0)
            await self._take_in(archive, str(wanted), lambda _: None, keep_requirements=False)
        return True

    def find(self, reference: str) -> StoredImage:
        return self._store.find(ImageReference.parse(reference))

    @contextlib.asynccontextmanager
    async def _changing(self) -> AsyncIterator[None]:
        """Around what changes tags; what was made of images that no tag and no agent needs any more goes then."""
        async with self._writing:
            yield
            kept = {image.digest for image in self._store.images()} | set(self._in_use())
            self._store.keep_signatures(kept)
            gone = self._unneeded(kept)
            for digest in gone:
                self._manifests.pop(digest, None)
            await in_thread(lambda _: unpack.remove(self._bundles, gone))
        for digest in gone:
            await self._remove_container_image(digest)

    def _unneeded(self, kept: Collection[str]) -> list[str]:
        """The digests of bundles that nothing needs. A container image is made of a bundle."""
        kept_paths = {unpack.bundle_path(self._bundles, digest) for digest in kept}
        found = [path for path in self._bundles.iterdir() if path not in kept_paths and not path.name.startswith(".")]
        return [f"sha256:{path.name}" for path in found]


def _with_registry(reference: str) -> ImageReference:
    parsed = ImageReference.parse(reference)
    if not parsed.registry:
        raise errors.InvalidArgument(
            f"'{reference}' names no registry; write its host first, like registry.example.com/team/{parsed}"
        )
    return parsed
