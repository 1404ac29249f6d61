"""An image to a bundle: a directory with `app/` and, if the agent has requirements, `deps/`."""

import gzip
import hashlib
import shutil
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from agentruntime import errors

from agent_pool.images import project, tar
from agent_pool.images.layout import ImageLayout

# What is not a bundle yet, and what is none any more.
_COMING, _GOING = ".unpack.", ".removed."


def bundle_path(bundles: Path, digest: str) -> Path:
    """Where the image of that manifest digest is unpacked to."""
    return bundles / digest.removeprefix("sha256:")


def unpack(store: ImageLayout, digest: str, bundles: Path) -> Path:
    """Unpacks an image, if it is not there yet, and returns the bundle. Blocks.

    The bundle appears by rename, whole; every layer's digest is verified while it is read.

    Raises:
        DataLoss: a blob is missing or damaged.
        ResourceExhausted: it is larger than what can be built.
    """
    bundle = bundle_path(bundles, digest)
    if bundle.is_dir():
        return bundle
    scratch = Path(tempfile.mkdtemp(dir=bundles, prefix=_COMING))
    try:
        unpacking = _Unpacking(scratch)
        for layer in store.manifest(digest)["layers"]:
            _unpack_layer(store, layer, unpacking)
        try:
            project.check_ways(scratch, unpacking.links)
        except errors.InvalidArgument as error:
            raise errors.DataLoss(f"the image {digest} cannot be unpacked: {error}") from None
        scratch.chmod(0o755)
        try:
            scratch.rename(bundle)
        except OSError:
            if not bundle.is_dir():
                raise  # else another start was quicker, with the same bytes
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return bundle


def remove(bundles: Path, digests: Iterable[str]) -> None:
    """Removes those bundles that are there. Blocks."""
    for bundle in (bundle_path(bundles, digest) for digest in digests):
        if bundle.is_dir():
            # Renamed first, so that no half of it is ever found under its name.
            doomed = bundle.with_name(f"{_GOING}{bundle.name}")
            bundle.rename(doomed)
            shutil.rmtree(doomed)


def clear(bundles: Path) -> None:
    """Removes what a pool that was killed left half unpacked or half removed. Blocks."""
    for left in [*bundles.glob(f"{_COMING}*"), *bundles.glob(f"{_GOING}*")]:
        shutil.rmtree(left)


class _Unpacking:
    """Members of an image's layers, all together within the limits of what can be built."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self.links: list[PurePosixPath] = []
        # What is left of bytes and of files: of requirements, and of all else.
        self._left = {
            True: (project.LARGEST_REQUIREMENTS_BYTES, project.MOST_REQUIREMENTS_FILES),
            False: (project.LARGEST_BYTES, project.MOST_FILES),
        }

    def write(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = project.checked_path(member.name)
        of_requirements = path.parts[:1] == ("deps",)
        left_bytes, left_files = self._left[of_requirements]
        # The directory of the layer itself is no file of the project.
        left_bytes, left_files = left_bytes - member.size, left_files - (len(path.parts) > 1)
        if left_bytes < 0 or left_files < 0:
            raise errors.ResourceExhausted(
                "the image has more or larger files than one that can be built; it is not unpacked"
            )
        self._left[of_requirements] = left_bytes, left_files
        if member.issym():
            self.links.append(path)
        project.write_member(archive, member, path, self._target)


def _unpack_layer(store: ImageLayout, layer: dict[str, Any], unpacking: _Unpacking) -> None:
    digest = layer["digest"]
    try:
        with store.blob_path(digest).open("rb") as stream:
            actual = "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
            if actual != digest:
                raise errors.DataLoss(f"the layer {digest} in the image store is damaged; build the image again")
            stream.seek(0)
            with gzip.open(stream) as unpacked:
                for archive, member in tar.members(unpacked):
                    unpacking.write(archive, member)
    except FileNotFoundError:
        raise errors.DataLoss(f"the image store lacks the layer {digest}; build the image again") from None
    except errors.InvalidArgument as error:
        raise errors.DataLoss(f"the layer {digest} cannot be unpacked: {error.message}") from None
