"""Signatures of an image as an OCI artifact beside it: the form in which they lie in the store and in registries.

One manifest for all of an image's signatures, a layer for each, as cosign has it; its `subject` makes it a referrer
of the image for registries that list those (OCI 1.1), its tag finds it in those that do not.
https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from agentruntime import errors
from agentruntime.signing import LONGEST_PAYLOAD_BYTES, LONGEST_SIGNATURE_BYTES, MOST_SIGNATURES, Claim, Signature
from pydantic import BaseModel, ConfigDict, Field, ValidationError

ARTIFACT_TYPE = "application/vnd.dev.cosign.artifact.sig.v1+json"
PAYLOAD_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
_SIGNATURE = "dev.cosignproject.cosign/signature"
# As the store has them; it imports this module.
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
# Base64 of the longest signature.
_LONGEST_ANNOTATION = (LONGEST_SIGNATURE_BYTES + 2) // 3 * 4


class _Layer(BaseModel):
    # What others put there is kept as it is.
    model_config = ConfigDict(extra="allow", strict=True)

    media_type: str = Field(alias="mediaType", max_length=256)
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]
    annotations: dict[str, str] = Field(default_factory=dict)

    @property
    def value(self) -> bytes | None:
        """The signature, if this layer is the payload of one that can be read."""
        text = self.annotations.get(_SIGNATURE, "")
        if self.media_type != PAYLOAD_TYPE or not 0 < len(text) <= _LONGEST_ANNOTATION:
            return None
        if self.size > LONGEST_PAYLOAD_BYTES:
            return None
        try:
            return base64.b64decode(text, validate=True)
        except ValueError:  # no base64, or no ASCII
            return None


class _Manifest(BaseModel):
    media_type: Literal["application/vnd.oci.image.manifest.v1+json"] = Field(alias="mediaType")
    layers: Annotated[list[_Layer], Field(max_length=4 * MOST_SIGNATURES)]


def tag_of(digest: str) -> str:
    """The tag under which registries have an image's signatures."""
    return digest.replace(":", "-") + ".sig"


def check(signature: Signature, digest: str) -> None:
    """Whether a signature may lie beside an image, by whomever it is.

    Raises:
        InvalidArgument: it is none, or of another image.
    """
    if not 0 < len(signature.value) <= LONGEST_SIGNATURE_BYTES:
        raise errors.InvalidArgument(f"a signature has at most {LONGEST_SIGNATURE_BYTES} bytes")
    claim = Claim.parse(signature.payload)
    if claim.digest != digest:
        raise errors.InvalidArgument(f"that signature is of {claim.digest}, and the image is {digest}")


def layer(signature: Signature) -> dict[str, Any]:
    """The descriptor of a signature's payload."""
    return {
        "mediaType": PAYLOAD_TYPE,
        "digest": digest_of(signature.payload),
        "size": len(signature.payload),
        "annotations": {_SIGNATURE: base64.b64encode(signature.value).decode()},
    }


def layers(manifest: bytes) -> list[dict[str, Any]]:
    """The descriptors in a manifest of signatures, also such as are of something else.

    Raises:
        InvalidArgument: it is no such manifest.
    """
    try:
        return [each.model_dump(by_alias=True) for each in _Manifest.model_validate_json(manifest).layers]
    except ValidationError:
        raise errors.InvalidArgument("this is no manifest of signatures") from None


def values(descriptors: Iterable[Mapping[str, Any]]) -> list[tuple[str, bytes]]:
    """Of those descriptors that are of signatures: the payload's digest, and the signature. At most 32."""
    found = [(each.digest, each.value) for each in map(_Layer.model_validate, descriptors)]
    return [(digest, value) for digest, value in found if value is not None][:MOST_SIGNATURES]


def united(there: Sequence[Mapping[str, Any]], more: Iterable[Signature]) -> list[Mapping[str, Any]]:
    """The descriptors that are there, and those of the signatures that are not among them yet."""
    known = set(values(there))
    return [*there, *(layer(each) for each in more if (digest_of(each.payload), each.value) not in known)]


def manifest(subject: Mapping[str, Any], descriptors: Sequence[Mapping[str, Any]]) -> tuple[bytes, bytes]:
    """The manifest of signatures with these descriptors, and its configuration.

    Args:
        subject: the descriptor of the image's manifest.
        descriptors: of the layers.
    """
    config = _json(
        {
            "architecture": "",
            "os": "",
            "config": {},
            # A payload is not compressed, so that its digest is also its content's.
            "rootfs": {"type": "layers", "diff_ids": [each["digest"] for each in descriptors]},
        }
    )
    body = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": {"mediaType": _CONFIG_TYPE, "digest": digest_of(config), "size": len(config)},
        "layers": list(descriptors),
        "subject": dict(subject),
    }
    return _json(body), config


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def _json(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
