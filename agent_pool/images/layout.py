"""The local store: an OCI image layout 1.0 (https://github.com/opencontainers/image-spec/blob/v1.0.2/image-layout.md).

`oci-layout`, `index.json` with a tagged descriptor per reference, and blobs named by their SHA-256. One pool
writes; every file appears by rename, so a reader never sees half of one.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agentruntime import errors, files, log
from agentruntime.names import ImageReference
from agentruntime.signing import MOST_SIGNATURES, Signature

from agent_pool.images import signatures

INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
_REF_NAME = "org.opencontainers.image.ref.name"
_CREATED = "org.opencontainers.image.created"
_BUILT_IN = "agentruntime.built-in"
# Annotation of the descriptor of an image's signatures: the digest of the image's manifest.
_SIGNATURES_OF = "agentruntime.signatures-of"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")

# Blobs that are being made.
_SCRATCH = ".layer."

_log = log.get("agent_pool.images")


@dataclass(frozen=True)
class StoredImage:
    """One tag."""

    reference: str
    digest: str
    # Of its layers, compressed.
    size_bytes: int
    created_at: datetime
    built_in: bool


class ImageLayout:
    """Images in a directory."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._blobs = root / "blobs" / "sha256"

    def create(self) -> None:
        """Makes an empty layout where there is none."""
        self._blobs.mkdir(parents=True, exist_ok=True, mode=0o700)
        marker = self._root / "oci-layout"
        if not marker.exists():
            files.write_atomically(marker, json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
        if not (self._root / "index.json").exists():
            self._write_index([])

    def blob_path(self, digest: str) -> Path:
        """Where the blob of that digest is, or would be.

        Raises:
            DataLoss: it is not a digest.
        """
        match = _DIGEST.fullmatch(digest)
        if match is None:
            raise errors.DataLoss(f"the image store names a blob '{digest}', which is not a SHA-256 digest")
        return self._blobs / match[1]

    def add_blob(self, data: bytes) -> str:
        """Stores bytes; returns their digest."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        path = self.blob_path(digest)
        # One that is there and damaged is mended by building again.
        if not path.exists() or path.read_bytes() != data:
            files.write_atomically(path, data)
        return digest

    def scratch_file(self) -> tuple[int, Path]:
        """A new file that `add_file` can take: open, and its path."""
        descriptor, name = tempfile.mkstemp(dir=self._blobs, prefix=_SCRATCH)
        return descriptor, Path(name)

    def clear_scratch(self) -> None:
        """Removes the scratch files of a pool that was killed."""
        for left in self._blobs.glob(f"{_SCRATCH}*"):
            left.unlink()

    def add_file(self, source: Path) -> tuple[str, int]:
        """Stores a file, which must be in this file system and on disk, and is moved.

        Returns its digest and size in bytes.
        """
        with source.open("rb") as stream:
            digest = "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
        size_bytes = source.stat().st_size
        source.replace(self.blob_path(digest))
        files.sync_directory(self._blobs)
        return digest, size_bytes

    def adopt(
        self, reference: ImageReference, digest: str, directory: Path, signed: Iterable[Signature] = ()
    ) -> StoredImage:
        """Takes an image in under a tag, with its signatures, as far as there is room for them.

        Its blobs are the files in a directory of this file system, and move.
        """
        for path in directory.iterdir():
            self.add_file(path)
        image = self.tag(reference, digest, datetime.now(UTC))
        there = self.signatures(digest)
        new = [each for each in signed if each not in there]
        self.add_signatures(digest, new[: MOST_SIGNATURES - len(there)])
        return image

    def read_blob(self, digest: str) -> bytes:
        """The bytes of a small blob, verified.

        Raises:
            DataLoss: it is missing or does not have its digest.
        """
        try:
            data = self.blob_path(digest).read_bytes()
        except FileNotFoundError:
            raise errors.DataLoss(f"the image store lacks the blob {digest}; build the image again") from None
        if "sha256:" + hashlib.sha256(data).hexdigest() != digest:
            raise errors.DataLoss(f"the blob {digest} in the image store is damaged; build the image again")
        return data

    def manifest(self, digest: str) -> dict[str, Any]:
        """An image's manifest.

        Raises:
            DataLoss: it is missing, damaged, or no manifest.
        """
        content = self.read_blob(digest)
        try:
            manifest: dict[str, Any] = json.loads(content)
            good = all(_DIGEST.fullmatch(each["digest"]) for each in manifest["layers"])
        except (ValueError, KeyError, TypeError, RecursionError):
            good = False
        if not good or manifest.get("mediaType") != MANIFEST_TYPE:
            raise errors.DataLoss(f"the blob {digest} in the image store is not an image manifest")
        return manifest

    def tag(
        self, reference: ImageReference, digest: str, created_at: datetime, *, built_in: bool = False
    ) -> StoredImage:
        """Points a tag at a manifest, away from whatever it pointed at, and drops what nothing points at."""
        annotations = {_REF_NAME: str(reference), _CREATED: created_at.isoformat()}
        if built_in:
            annotations[_BUILT_IN] = "true"
        entry = {**self.descriptor(digest), "annotations": annotations}
        others = [e for e in self._entries() if _reference(e) != str(reference)]
        self._write_index([*others, entry, *self._signature_entries()])
        self.collect_garbage()
        return self._stored(entry)

    def signatures(self, digest: str) -> list[Signature]:
        """What lies beside an image; none if it is damaged, with a line in the log."""
        entry = next((e for e in self._signature_entries() if e["annotations"][_SIGNATURES_OF] == digest), None)
        if entry is None:
            return []
        try:
            described = signatures.values(signatures.layers(self.read_blob(entry["digest"])))
            return [Signature(self.read_blob(payload), value) for payload, value in described]
        except (errors.DataLoss, errors.InvalidArgument) as error:
            _log.error("the signatures of an image are damaged", image=digest, error=error.message)
            return []

    def add_signatures(self, digest: str, more: Iterable[Signature]) -> None:
        """Puts signatures beside an image, those that are there already once.

        Raises:
            ResourceExhausted: they would be too many.
        """
        there = self.signatures(digest)
        new = [each for each in dict.fromkeys(more) if each not in there]
        if not new:
            return
        if len(there) + len(new) > MOST_SIGNATURES:
            raise errors.ResourceExhausted(f"the image {digest} would have more than {MOST_SIGNATURES} signatures")
        for each in new:
            self.add_blob(each.payload)
        manifest, config = signatures.manifest(self.descriptor(digest), [signatures.layer(e) for e in [*there, *new]])
        self.add_blob(config)
        entry = {
            "mediaType": MANIFEST_TYPE,
            "artifactType": signatures.ARTIFACT_TYPE,
            "digest": self.add_blob(manifest),
            "size": len(manifest),
            "annotations": {_SIGNATURES_OF: digest},
        }
        others = [e for e in self._signature_entries() if e["annotations"][_SIGNATURES_OF] != digest]
        self._write_index([*self._entries(), *others, entry])
        self.collect_garbage()

    def keep_signatures(self, digests: Collection[str]) -> None:
        """Drops the signatures of all images but these."""
        kept = [e for e in self._signature_entries() if e["annotations"][_SIGNATURES_OF] in digests]
        if len(kept) < len(self._signature_entries()):
            self._write_index([*self._entries(), *kept])
            self.collect_garbage()

    def is_built_in(self, name: str, digest: str) -> bool:
        """Whether an image came with the platform, by that name."""
        own = [e for e in self._entries() if e["annotations"].get(_BUILT_IN) == "true"]
        return any(e["digest"] == digest and _name(e) == name for e in own)

    def descriptor(self, digest: str) -> dict[str, Any]:
        """Of an image's manifest, which is there."""
        return {"mediaType": MANIFEST_TYPE, "digest": digest, "size": self.blob_path(digest).stat().st_size}

    def images(self) -> list[StoredImage]:
        """All tags that can be read, by reference; one that is damaged is logged and takes no other with it."""
        found = []
        for entry in sorted(self._entries(), key=_reference):
            try:
                found.append(self._stored(entry))
            except errors.DataLoss as error:
                _log.error("an image is damaged", image=_reference(entry), error=error.message)
        return found

    def find(self, reference: ImageReference) -> StoredImage:
        """The image of a tag, or of a digest under a name.

        Raises:
            ImageNotFound: there is none; names the tags that do exist.
            DataLoss: it is damaged.
        """
        return self._stored(self._entry(reference))

    def _entry(self, reference: ImageReference) -> dict[str, Any]:
        entries = sorted(self._entries(), key=_reference)
        same_name = [entry for entry in entries if _name(entry) == reference.name]
        for entry in same_name:
            if entry["digest"] == reference.digest or _reference(entry) == str(reference):
                return entry
        if same_name:
            there = ", ".join(_reference(entry) for entry in same_name)
            raise errors.ImageNotFound(f"image '{reference}' not found; there is {there}")
        there = ", ".join(_reference(entry) for entry in entries) or "none"
        raise errors.ImageNotFound(f"image '{reference}' not found; `agent build` makes one; there is {there}")

    def remove(self, reference: ImageReference) -> None:
        """Removes a tag (or, for a digest, all tags of that name on it), and the data that nothing needs any more.

        Raises:
            ImageNotFound: there is none.
            FailedPrecondition: it is built in.
        """
        # Not `find`: a damaged image can be removed, too.
        found = self._entry(reference)
        tag = _reference(found)
        if found["annotations"].get(_BUILT_IN) == "true":
            raise errors.FailedPrecondition(f"image '{tag}' is built in and stays")

        def goes(entry: dict[str, Any]) -> bool:
            if reference.digest:
                return _name(entry) == reference.name and str(entry["digest"]) == reference.digest
            return _reference(entry) == tag

        stay = [entry for entry in self._entries() if not goes(entry)]
        self._write_index([*stay, *self._signature_entries()])
        self.collect_garbage()

    def _stored(self, entry: dict[str, Any]) -> StoredImage:
        notes = entry["annotations"]
        manifest = self.manifest(entry["digest"])
        try:
            return StoredImage(
                reference=notes[_REF_NAME],
                digest=entry["digest"],
                size_bytes=sum(layer["size"] for layer in manifest["layers"]),
                created_at=datetime.fromisoformat(notes[_CREATED]),
                built_in=notes.get(_BUILT_IN) == "true",
            )
        except (KeyError, TypeError, ValueError) as error:
            raise errors.DataLoss(
                f"what the image store says of '{notes[_REF_NAME]}' is incomplete ({error!r}); build the image again"
            ) from None

    def _entries(self) -> list[dict[str, Any]]:
        # Another tool may have added descriptors without a tag, or with one that is none of ours.
        return [entry for entry in self._annotated(_REF_NAME) if _is_reference(entry["annotations"][_REF_NAME])]

    def _signature_entries(self) -> list[dict[str, Any]]:
        return self._annotated(_SIGNATURES_OF)

    def _annotated(self, key: str) -> list[dict[str, Any]]:
        try:
            manifests = json.loads((self._root / "index.json").read_bytes())["manifests"]
            return [entry for entry in manifests if _is_noted(entry, key)]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise errors.DataLoss(
                f"{self._root / 'index.json'} is damaged; remove that directory and build or pull its images again"
            ) from None

    def _write_index(self, entries: list[dict[str, Any]]) -> None:
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries}
        files.write_atomically(self._root / "index.json", json.dumps(index, indent=2).encode())

    def collect_garbage(self) -> None:
        """Removes the blobs that no tag needs."""
        kept = set(self._referenced())
        for path in self._blobs.iterdir():
            if len(path.name) == 64 and f"sha256:{path.name}" not in kept:
                path.unlink()

    def _referenced(self) -> Iterator[str]:
        for entry in [*self._entries(), *self._signature_entries()]:
            yield entry["digest"]
            try:
                manifest = self.manifest(entry["digest"])
                yield manifest["config"]["digest"]
                for layer in manifest["layers"]:
                    yield layer["digest"]
            except (errors.DataLoss, KeyError, TypeError) as error:
                # What it needed cannot be known any more, and it cannot run without being built again.
                what = entry["annotations"].get(_REF_NAME, entry["digest"])
                _log.error("an image is damaged", image=what, error=str(error))


def _is_noted(entry: Any, key: str) -> bool:
    """Whether an entry of an index is a descriptor with that annotation."""
    notes = entry.get("annotations") if isinstance(entry, dict) else None
    return isinstance(notes, dict) and isinstance(notes.get(key), str) and isinstance(entry.get("digest"), str)


def _is_reference(text: str) -> bool:
    try:
        ImageReference.parse(text)
    except errors.InvalidArgument:
        return False
    return True


def _reference(entry: dict[str, Any]) -> str:
    return str(entry["annotations"][_REF_NAME])


def _name(entry: dict[str, Any]) -> str:
    return ImageReference.parse(_reference(entry)).name
