"""Signatures of agent images: key pairs, what is signed, and whether a signature is somebody's.

ECDSA P-256 over cosign's "simple signing" payload, which names a repository and a manifest's digest, so that cosign
and skopeo verify what is signed here, and an image that cosign signed with a key is good here, too:
https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md. Why: docs/decisions/0067-signed-images.md.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentruntime import errors
from agentruntime.names import ImageReference

# Of one image; and of one signature, as bounds for what comes from a registry or a caller.
MOST_SIGNATURES = 32
LONGEST_PAYLOAD_BYTES = 16 * 2**10
LONGEST_SIGNATURE_BYTES = 256
# Of a file of public keys.
_LONGEST_KEYS_BYTES = 2**16
_TYPE = "cosign container image signature"
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)


@dataclass(frozen=True)
class Signature:
    """`value` is the ECDSA signature, in DER, of the SHA-256 of `payload`."""

    payload: bytes
    value: bytes


@dataclass(frozen=True)
class Claim:
    """What a signature says: the image with that manifest digest may be called by that name, whatever its tag."""

    name: str
    digest: str

    @classmethod
    def of(cls, reference: ImageReference, digest: str) -> "Claim":
        """The claim about an image that was asked for by that reference and found with that digest.

        Raises:
            ImageNotTrusted: another one was asked for.
        """
        if reference.digest and reference.digest != digest:
            raise errors.ImageNotTrusted(
                f"the platform answered for {digest} when asked for {reference}; do not trust what it says of images"
            )
        return cls(reference.name, digest)

    @property
    def payload(self) -> bytes:
        """The bytes that are signed."""
        critical = {
            "identity": {"docker-reference": self.name},
            "image": {"docker-manifest-digest": self.digest},
            "type": _TYPE,
        }
        return json.dumps({"critical": critical, "optional": {}}, separators=(",", ":"), sort_keys=True).encode()

    @classmethod
    def parse(cls, payload: bytes) -> "Claim":
        """What a payload says, whoever signed it.

        Raises:
            InvalidArgument: it is no payload of an image's signature.
        """
        if len(payload) > LONGEST_PAYLOAD_BYTES:
            raise errors.InvalidArgument(f"a signature's payload has at most {LONGEST_PAYLOAD_BYTES} bytes")
        try:
            critical = _Payload.model_validate_json(payload).critical
        except ValidationError:
            raise errors.InvalidArgument(
                "this is not the payload of an image's signature; `agent sign` makes one"
            ) from None
        return cls(critical.identity.name, critical.image.digest)


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class _Identity(_Part):
    name: str = Field(alias="docker-reference", max_length=512)


class _Image(_Part):
    digest: str = Field(alias="docker-manifest-digest", pattern=r"^sha256:[0-9a-f]{64}$")


class _Critical(_Part):
    identity: _Identity
    image: _Image
    type: Literal["cosign container image signature"]


class _Payload(_Part):
    critical: _Critical


class PublicKey:
    """One that is trusted.

    Args:
        key: on P-256.
        name: what people call it.
    """

    def __init__(self, key: ec.EllipticCurvePublicKey, name: str) -> None:
        self._key = key
        self.name = name

    def verifies(self, signature: Signature) -> bool:
        """Whether it was made with this key's private half."""
        try:
            self._key.verify(signature.value, signature.payload, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


def public_keys(pem: bytes, name: str) -> list[PublicKey]:
    """The public keys of a PEM file, of which there may be several, one after the other.

    Raises:
        InvalidArgument: it holds none, or something else.
    """
    if len(pem) > _LONGEST_KEYS_BYTES:
        raise errors.InvalidArgument(f"{name} is too long for a file of public keys")
    found = []
    for block in _PEM.finditer(pem):
        if block[1] != b"PUBLIC KEY":
            raise errors.InvalidArgument(
                f"{name} holds a {block[1].decode().lower()}, not a public key; give the .pub file of `agent keypair`"
            )
        try:
            key = serialization.load_pem_public_key(block[0])
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise errors.InvalidArgument(f"{name} is not an ECDSA key on P-256, as `agent keypair` makes them")
        found.append(PublicKey(key, name))
    if not found:
        raise errors.InvalidArgument(f"{name} holds no public key; `agent keypair` makes one")
    return found


class PrivateKey:
    """What signs."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> "PrivateKey":
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def parse(cls, pem: bytes, passphrase: bytes | None = None) -> "PrivateKey":
        """Of a PEM file (PKCS #8).

        Raises:
            InvalidArgument: it is none, or locked, or the passphrase is not its.
        """
        try:
            key = serialization.load_pem_private_key(pem, passphrase)
        except TypeError:
            how = "with --passphrase-file" if passphrase is None else "without --passphrase-file"
            raise errors.InvalidArgument(f"the private key can only be read {how}") from None
        except (ValueError, UnsupportedAlgorithm):
            why = "that is no private key, or not its passphrase" if passphrase else "that is no private key"
            raise errors.InvalidArgument(f"{why}; `agent keypair` makes one") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise errors.InvalidArgument("the private key is not ECDSA on P-256, as `agent keypair` makes them")
        return cls(key)

    def pem(self, passphrase: bytes | None = None) -> bytes:
        locked = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
        return self._key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)

    def public_pem(self) -> bytes:
        return self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def public(self, name: str) -> PublicKey:
        return PublicKey(self._key.public_key(), name)

    def sign(self, claim: Claim) -> Signature:
        return Signature(claim.payload, self._key.sign(claim.payload, ec.ECDSA(hashes.SHA256())))


def signer(wanted: Claim, signatures: Iterable[Signature], keys: Iterable[PublicKey]) -> str:
    """The name of the key that signed an image under a name.

    Raises:
        ImageNotTrusted: none of these did; says what is wrong with the signatures that there are.
    """
    trusted = list(keys)
    why = "is not signed; `agent sign` does it"
    for signature in signatures:
        key = next((each for each in trusted if each.verifies(signature)), None)
        claim = _claim(signature)
        if key is not None and claim == wanted:
            return key.name
        if key is None:
            why = "is signed by none of the trusted keys"
        elif claim is None or claim.digest != wanted.digest:
            why = "has a signature that is of another image"
        else:
            why = f"is signed as '{claim.name}'; `agent sign` it by this name, too"
    raise errors.ImageNotTrusted(f"image '{wanted.name}' ({wanted.digest}) {why}")


def _claim(signature: Signature) -> Claim | None:
    try:
        return Claim.parse(signature.payload)
    except errors.InvalidArgument:
        return None
