"""A checked project to an image: one layer of code, one of requirements, a config and a manifest.

The same project gives the same bytes: members sorted, times and owners zero, modes 0644 or 0755, no names of
the machine that built it.
"""

import asyncio
import gzip
import hashlib
import json
import os
import platform
import stat
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from agentruntime import errors
from agentruntime.manifest import AgentManifest
from agentruntime.names import ImageReference

from agent_pool.images import layout, project
from agent_pool.images.layout import ImageLayout, StoredImage
from agent_pool.images.thread import in_thread

# Go's names of machines, which OCI uses (https://go.dev/doc/install/source#environment).
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_PIP_TIMEOUT_S = 900.0
_ERROR_LINES = 8
# Annotation of a layer.
_REQUIREMENTS = "agentruntime.requirements"


@dataclass(frozen=True)
class Layer:
    """`digest` is of the compressed bytes, `diff_id` of the tar."""

    digest: str
    diff_id: str
    size_bytes: int
    # See `_installed`; "" for one that holds none.
    requirements: str = ""

    def descriptor(self) -> dict[str, Any]:
        described = {"mediaType": layout.LAYER_TYPE, "digest": self.digest, "size": self.size_bytes}
        return {**described, "annotations": {_REQUIREMENTS: self.requirements}} if self.requirements else described


async def build(
    store: ImageLayout,
    directory: Path,
    reference: str,
    *,
    pip: list[str],
    progress: Callable[[str], None],
    keep_requirements: bool = False,
    built_in: bool = False,
) -> StoredImage:
    """Packs a project directory and tags it.

    Args:
        reference: "name:tag"; empty takes name and version of agent.yaml. With a digest, the image must come out so.
        pip: argv of the pip that installs requirements.
        keep_requirements: takes them from the image that has the tag now, if it has the same.

    Raises:
        InvalidManifest, InvalidArgument: agent.yaml or the tag.
        FailedPrecondition: a requirement cannot be installed.
    """
    manifest = project.checked_manifest(directory)
    tag = ImageReference.parse(reference or f"{manifest.name}:{manifest.version}")
    progress(f"packing {tag}")
    layers = [await in_thread(lambda _: pack(store, directory, "app"))]
    if requirements := manifest.python.requirements:
        kept = _installed_before(store, tag, requirements) if keep_requirements else None
        layers.append(kept or await _install_layer(store, pip, requirements, progress))
    digest = _write_manifest(store, manifest, layers)
    if tag.digest not in ("", digest):
        store.collect_garbage()
        raise errors.DataLoss(f"what should be {tag} comes out as {digest}; nothing of it is kept")
    return store.tag(tag, digest, datetime.now(UTC), built_in=built_in)


def _installed_before(store: ImageLayout, tag: ImageReference, requirements: list[str]) -> Layer | None:
    """The layer of the same requirements in the image of a tag, if there is one."""
    try:
        manifest = store.manifest(store.find(tag).digest)
        diff_ids = json.loads(store.read_blob(manifest["config"]["digest"]))["rootfs"]["diff_ids"]
    except (errors.ImageNotFound, errors.DataLoss):
        return None
    for layer, diff_id in zip(manifest["layers"], diff_ids, strict=True):
        wanted = layer.get("annotations", {}).get(_REQUIREMENTS) == _installed(requirements)
        if wanted and store.blob_path(layer["digest"]).exists():
            return Layer(layer["digest"], diff_id, layer["size"], _installed(requirements))
    return None


async def _install_layer(
    store: ImageLayout, pip: list[str], requirements: list[str], progress: Callable[[str], None]
) -> Layer:
    progress(f"installing {', '.join(requirements)}")
    with tempfile.TemporaryDirectory(prefix="agentruntime-deps-") as scratch:
        await _install(pip, requirements, Path(scratch))
        progress("packing requirements")
        layer = await in_thread(lambda _: pack(store, Path(scratch), "deps"))
    return replace(layer, requirements=_installed(requirements))


def _installed(requirements: list[str]) -> str:
    """What tells one installation of requirements from another: they and the Python that they are for."""
    return json.dumps([sys.implementation.cache_tag, *requirements])


async def _install(pip: list[str], requirements: list[str], target: Path) -> None:
    options = ["--quiet", "--disable-pip-version-check", "--no-compile", "--no-input", "--target", str(target)]
    process = await asyncio.create_subprocess_exec(
        *pip, "install", *options, "--", *requirements,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_PIP_TIMEOUT_S):
            output, _ = await process.communicate()
    except BaseException as error:
        process.kill()
        await process.wait()
        if isinstance(error, TimeoutError):
            raise errors.FailedPrecondition(f"pip did not finish within {_PIP_TIMEOUT_S:g}s") from None
        raise
    if process.returncode:
        lines = [line for line in output.decode(errors="replace").splitlines() if not line.startswith("WARNING")]
        said = "\n".join(lines[-_ERROR_LINES:])
        raise errors.FailedPrecondition(f"pip cannot install {', '.join(requirements)}:\n{said}")


def pack(store: ImageLayout, directory: Path, prefix: str) -> Layer:
    """Stores a directory as a layer, its content below `prefix`/. Blocks."""
    descriptor, scratch = store.scratch_file()
    try:
        with os.fdopen(descriptor, "wb") as raw:
            # No file name and time 0 in gzip's header, and a fixed level: the same bytes again.
            with gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=6, mtime=0) as packed:
                hashing = _HashingWriter(packed)
                # OCI layers are read as a stream, so the writer need not seek either.
                with tarfile.open(fileobj=hashing, mode="w|", format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]  # a writer is all that "w|" wants
                    add_tree(archive, directory, prefix)
            raw.flush()
            os.fsync(raw.fileno())
        digest, size_bytes = store.add_file(scratch)
    finally:
        scratch.unlink(missing_ok=True)
    return Layer(digest, "sha256:" + hashing.hash.hexdigest(), size_bytes)


class _HashingWriter:
    def __init__(self, inner: IO[bytes] | gzip.GzipFile) -> None:
        self._inner = inner
        self.hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        return self._inner.write(data)


def add_tree(archive: tarfile.TarFile, directory: Path, prefix: str) -> None:
    """Adds a directory to a tar, below `prefix`/: the same bytes for the same files."""
    top = tarfile.TarInfo(prefix)
    top.type, top.mode = tarfile.DIRTYPE, 0o755
    archive.addfile(top)
    for path in project.files(directory):
        place = directory / path
        member = tarfile.TarInfo(f"{prefix}/{path}")
        mode = place.lstat().st_mode
        if stat.S_ISLNK(mode):
            member.type, member.mode, member.linkname = tarfile.SYMTYPE, 0o777, str(place.readlink())
            archive.addfile(member)
        elif stat.S_ISDIR(mode):
            if place.name == "__pycache__":
                continue
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member)
        elif stat.S_ISREG(mode) and place.parent.name != "__pycache__":
            member.size, member.mode = place.stat().st_size, 0o755 if mode & 0o100 else 0o644
            with place.open("rb") as content:
                archive.addfile(member, content)


def _write_manifest(store: ImageLayout, manifest: AgentManifest, layers: list[Layer]) -> str:
    config = {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"WorkingDir": "/app", "Labels": {"agentruntime.agent": manifest.name}},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
    }
    config_bytes = _canonical(config)
    body = {
        "schemaVersion": 2,
        "mediaType": layout.MANIFEST_TYPE,
        "config": {
            "mediaType": layout.CONFIG_TYPE,
            "digest": store.add_blob(config_bytes),
            "size": len(config_bytes),
        },
        "layers": [layer.descriptor() for layer in layers],
        "annotations": {
            "org.opencontainers.image.title": manifest.name,
            "org.opencontainers.image.version": manifest.version,
        },
    }
    return store.add_blob(_canonical(body))


def _canonical(data: dict[str, Any]) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
