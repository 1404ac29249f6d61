"""Agent images in registries: pushed and pulled by OCI's distribution protocol, every digest checked.

https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md. All of it blocks.
"""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import requests
import urllib3
from agentruntime import errors, units
from agentruntime.names import ImageReference
from agentruntime.signing import LONGEST_PAYLOAD_BYTES, Signature
from pydantic import BaseModel, Field, ValidationError

from agent_pool.images import project, signatures
from agent_pool.images.layout import MANIFEST_TYPE, ImageLayout
from agent_pool.images.registry_session import RegistrySession

_PIECE_BYTES = 2**20
# As registries have it.
_LONGEST_MANIFEST_BYTES = 4 * 2**20
# Of an agent image it is some hundred bytes long, and its layers are two.
_LONGEST_CONFIG_BYTES = 2**20
_MOST_LAYERS = 16
_SHOWN = len("sha256:") + 12
Say = Callable[[str], None]


class _Descriptor(BaseModel):
    media_type: str = Field(alias="mediaType")
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]


class _Config(_Descriptor):
    media_type: Literal["application/vnd.oci.image.config.v1+json"] = Field(alias="mediaType")
    size: Annotated[int, Field(ge=0, le=_LONGEST_CONFIG_BYTES)]


class _Layer(_Descriptor):
    media_type: Literal["application/vnd.oci.image.layer.v1.tar+gzip"] = Field(alias="mediaType")


class _Manifest(BaseModel):
    """Of an agent image."""

    media_type: Literal["application/vnd.oci.image.manifest.v1+json"] = Field(alias="mediaType")
    config: _Config
    layers: Annotated[list[_Layer], Field(min_length=1, max_length=_MOST_LAYERS)]

    @property
    def blobs(self) -> list[_Descriptor]:
        return [self.config, *self.layers]


def push(store: ImageLayout, digest: str, to: ImageReference, say: Say, given_up: threading.Event) -> None:
    """Copies an image to a registry, less what that has already.

    Args:
        store: has it.
        digest: of its manifest.
        to: names the registry.
        say: hears what is being done, for people.
        given_up: set when nobody waits any more.

    Raises:
        DataLoss: it is damaged here, or the registry has something else in the end.
        Unauthenticated, Unavailable, FailedPrecondition: the registry.
    """
    content = store.read_blob(digest)
    with RegistrySession(to, "pull,push") as session:
        for blob in _parsed(content, f"the image {digest[:_SHOWN]}").blobs:
            _raise_if(given_up)
            _send_blob(session, store, blob, say)
        # Before the image has its tag there: whoever demands a signature finds it.
        _send_signatures(session, store, digest, to, say)
        put = session.request(
            "PUT", f"manifests/{to.digest or to.tag}", data=content, headers={"Content-Type": MANIFEST_TYPE}
        )
        there = put.headers.get("Docker-Content-Digest", digest)
        if there != digest:
            raise errors.DataLoss(f"the registry {to.registry} has {there} now instead of {digest}; push it again")


def pull(of: ImageReference, scratch: Path, say: Say, given_up: threading.Event) -> tuple[str, list[Signature]]:
    """Copies an image from a registry into an empty directory, as files whose names do not matter.

    Returns the digest of its manifest, and the signatures that the registry has of it, whoever made them.

    Raises:
        ImageNotFound: the registry has none.
        DataLoss: what came does not have its digest.
        ResourceExhausted: it is larger than any that can be unpacked.
        Unauthenticated, Unavailable, FailedPrecondition: the registry; or it is no agent's image.
    """
    with RegistrySession(of, "pull") as session:
        content, digest = _fetch_manifest(session, of)
        manifest = _parsed(content, str(of))
        size_bytes = sum(blob.size for blob in manifest.blobs)
        if size_bytes > project.LARGEST_BYTES + project.LARGEST_REQUIREMENTS_BYTES:
            raise errors.ResourceExhausted(f"{of} is too large for an agent image ({units.format_size(size_bytes)})")
        for blob in manifest.blobs:
            _fetch_blob(session, blob, scratch / blob.digest.removeprefix("sha256:"), say, given_up)
        _check_agent(scratch / manifest.config.digest.removeprefix("sha256:"), of)
        (scratch / "manifest").write_bytes(content)
        return digest, _fetch_signatures(session, of, digest, say)


def _parsed(content: bytes, what: str) -> _Manifest:
    try:
        return _Manifest.model_validate_json(content)
    except ValidationError:
        raise _no_agent(what) from None


def _no_agent(what: str) -> errors.FailedPrecondition:
    return errors.FailedPrecondition(
        f"{what} is no agent image, which `agent push` makes; a container image of an agent is first to be pulled "
        "by `docker pull`"
    )


def _check_agent(config: Path, of: ImageReference) -> None:
    """Raises FailedPrecondition if an image is of something else; containers' manifests look the same."""
    try:
        labels = json.loads(config.read_bytes())["config"]["Labels"]
    except (ValueError, KeyError, TypeError, RecursionError):
        labels = None
    if not isinstance(labels, dict) or "agentruntime.agent" not in labels:
        raise _no_agent(str(of))


def _send_blob(session: RegistrySession, store: ImageLayout, blob: _Descriptor, say: Say) -> None:
    if session.has(f"blobs/{blob.digest}"):
        say(f"{blob.digest[:_SHOWN]} is there already")
        return
    path = store.blob_path(blob.digest)
    if not path.is_file() or _digest_of(path) != blob.digest:
        raise errors.DataLoss(f"the blob {blob.digest} in the image store is damaged; build the image again")
    say(f"sending {blob.digest[:_SHOWN]} ({units.format_size(blob.size)})")
    place = session.request("POST", "blobs/uploads/").headers.get("Location", "")
    session.request(
        "PUT",
        place,
        body=path,
        params={"digest": blob.digest},
        headers={"Content-Type": "application/octet-stream"},
    )


def _digest_of(path: Path) -> str:
    with path.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def _send_signatures(session: RegistrySession, store: ImageLayout, digest: str, to: ImageReference, say: Say) -> None:
    """Puts those that are here beside those that others put there."""
    here = store.signatures(digest)
    if not here:
        return
    tag = signatures.tag_of(digest)
    there = _signature_layers(session, digest)
    if there is None:
        raise errors.FailedPrecondition(
            f"the registry {session.host} has something else than signatures as {to.repository}:{tag}; "
            "remove that first"
        )
    described = signatures.united(there, here)
    if len(described) == len(there):
        say("its signatures are there already")
        return
    say(f"sending {len(described) - len(there)} of its signatures")
    manifest, config = signatures.manifest(store.descriptor(digest), described)
    for content in (config, *(each.payload for each in here)):
        _send_bytes(session, content)
    session.request("PUT", f"manifests/{tag}", data=manifest, headers={"Content-Type": MANIFEST_TYPE})


def _send_bytes(session: RegistrySession, content: bytes) -> None:
    digest = signatures.digest_of(content)
    if session.has(f"blobs/{digest}"):
        return
    place = session.request("POST", "blobs/uploads/").headers.get("Location", "")
    session.request(
        "PUT", place, data=content, params={"digest": digest}, headers={"Content-Type": "application/octet-stream"}
    )


def _signature_layers(session: RegistrySession, digest: str) -> list[dict[str, object]] | None:
    """What a registry has beside an image; None if it is something else than signatures."""
    tag = signatures.tag_of(digest)
    if not session.has(f"manifests/{tag}", headers={"Accept": MANIFEST_TYPE}):
        return []
    try:
        return signatures.layers(_manifest(session, tag, "the signatures")[0])
    except errors.InvalidArgument:
        return None


def _fetch_signatures(session: RegistrySession, of: ImageReference, digest: str, say: Say) -> list[Signature]:
    described = _signature_layers(session, digest)
    if described is None:
        say(f"what the registry has as signatures of {of} cannot be read; it counts as unsigned")
        return []
    found = []
    for payload_digest, value in signatures.values(described):
        response = session.request("GET", f"blobs/{payload_digest}", stream=True)
        payload = _short(session, response, LONGEST_PAYLOAD_BYTES, f"a signature of {of}")
        if signatures.digest_of(payload) != payload_digest:
            raise _mismatch(session, payload_digest, signatures.digest_of(payload))
        found.append(Signature(payload, value))
    if found:
        say(f"fetched {len(found)} of its signatures")
    return found


def _fetch_manifest(session: RegistrySession, of: ImageReference) -> tuple[bytes, str]:
    content, named = _manifest(session, of.digest or of.tag, f"the manifest of {of}")
    digest = signatures.digest_of(content)
    promised = of.digest or named or digest
    if digest != promised:
        raise _mismatch(session, promised, digest)
    return content, digest


def _manifest(session: RegistrySession, tag: str, what: str) -> tuple[bytes, str]:
    """A manifest as it comes, and what digest the registry says that it has, or ""."""
    response = session.request("GET", f"manifests/{tag}", headers={"Accept": MANIFEST_TYPE}, stream=True)
    content = _short(session, response, _LONGEST_MANIFEST_BYTES, what)
    return content, response.headers.get("Docker-Content-Digest", "")


def _short(session: RegistrySession, response: requests.Response, longest_bytes: int, what: str) -> bytes:
    content = b""
    for piece in _pieces(session, response):
        content += piece
        if len(content) > longest_bytes:
            raise errors.FailedPrecondition(f"{what} is longer than any agent image's")
    return content


def _fetch_blob(
    session: RegistrySession, blob: _Descriptor, target: Path, say: Say, given_up: threading.Event
) -> None:
    say(f"fetching {blob.digest[:_SHOWN]} ({units.format_size(blob.size)})")
    response = session.request("GET", f"blobs/{blob.digest}", stream=True)
    hashed, received = hashlib.sha256(), 0
    with target.open("wb") as stream:
        for piece in _pieces(session, response):
            _raise_if(given_up)
            received += len(piece)
            if received > blob.size:
                break  # whatever comes, it is not this blob
            hashed.update(piece)
            stream.write(piece)
        stream.flush()
        os.fsync(stream.fileno())
    if received != blob.size or hashed.hexdigest() != blob.digest.removeprefix("sha256:"):
        raise _mismatch(session, blob.digest, "sha256:" + hashed.hexdigest())


def _pieces(session: RegistrySession, response: requests.Response) -> Iterator[bytes]:
    try:
        # As it was sent: a digest is of these bytes, whatever a server says that they are.
        yield from response.raw.stream(_PIECE_BYTES, decode_content=False)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise errors.Unavailable(f"the registry {session.host} broke off ({error}); try again") from None


def _mismatch(session: RegistrySession, promised: str, came: str) -> errors.DataLoss:
    return errors.DataLoss(
        f"the registry {session.host} sent something else than {promised} ({came}); nothing of it is kept"
    )


def _raise_if(given_up: threading.Event) -> None:
    if given_up.is_set():
        raise errors.Cancelled("nobody waits for this image any more")
