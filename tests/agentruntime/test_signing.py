"""Signatures: who they are of, what they cover, and everything that is none."""

import json

import pytest
from agentruntime import errors
from agentruntime.signing import Claim, PrivateKey, Signature, public_keys, signer
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

KEY = PrivateKey.generate()
CLAIM = Claim("registry.example.com/team/my-agent", "sha256:" + "ab" * 32)
SIGNED = KEY.sign(CLAIM)


def test_a_signature_is_its_key_s_and_of_one_image_under_one_name() -> None:
    stranger = PrivateKey.generate()
    trusted = [stranger.public("stranger"), KEY.public("release")]
    assert signer(CLAIM, [stranger.sign(Claim("x", CLAIM.digest)), SIGNED], trusted) == "release"
    for wanted, signatures, keys, why in (
        (CLAIM, [], trusted, "is not signed"),
        (CLAIM, [SIGNED], [], "by none of the trusted keys"),
        (CLAIM, [SIGNED], trusted[:1], "by none of the trusted keys"),
        (Claim("other", CLAIM.digest), [SIGNED], trusted, "is signed as 'registry.example.com/team/my-agent'"),
        (Claim(CLAIM.name, "sha256:" + "cd" * 32), [SIGNED], trusted, "is of another image"),
    ):
        with pytest.raises(errors.ImageNotTrusted, match=why):
            signer(wanted, signatures, keys)


@given(st.integers(min_value=0), st.integers(1, 255))
def test_a_changed_byte_makes_it_nobody_s(position: int, change: int) -> None:
    whole = bytearray(SIGNED.payload + SIGNED.value)
    whole[position % len(whole)] ^= change
    length = len(SIGNED.payload)
    assert not KEY.public("").verifies(Signature(bytes(whole[:length]), bytes(whole[length:])))


def test_the_payload_is_cosign_s() -> None:
    assert json.loads(CLAIM.payload) == {
        "critical": {
            "identity": {"docker-reference": CLAIM.name},
            "image": {"docker-manifest-digest": CLAIM.digest},
            "type": "cosign container image signature",
        },
        "optional": {},
    }
    # As cosign writes it, in another order.
    other = json.loads(CLAIM.payload)["critical"]
    assert Claim.parse(json.dumps({"critical": dict(reversed(other.items())), "optional": None}).encode()) == CLAIM


@pytest.mark.parametrize(
    "payload",
    [b"", b"{}", b"\xff", b"[" * 10_000, b'{"critical": 1}', CLAIM.payload.replace(b"cosign c", b"other c"),
     CLAIM.payload.replace(b"sha256:", b"sha512:"), CLAIM.payload + b" " * 2**14],
)  # fmt: skip
def test_what_is_no_payload_is_refused(payload: bytes) -> None:
    with pytest.raises(errors.InvalidArgument):
        Claim.parse(payload)
    # Also where a trusted key signed it.
    signed = Signature(payload, KEY._key.sign(payload, ec.ECDSA(hashes.SHA256())))
    with pytest.raises(errors.ImageNotTrusted):
        signer(CLAIM, [signed], [KEY.public("release")])


def test_keys_are_what_they_should_be() -> None:
    first, second = public_keys(KEY.public_pem() + b"\nnoted\n" + PrivateKey.generate().public_pem(), "both")
    assert (first.verifies(SIGNED), second.verifies(SIGNED)) == (True, False)
    edwards = ed25519.Ed25519PrivateKey.generate()
    form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    for pem, why in (
        (b"", "holds no public key"),
        (KEY.pem(), "holds a private key, not a public key"),
        (edwards.public_key().public_bytes(*form), "is not an ECDSA key on P-256"),
        (ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(*form), "is not an ECDSA key on P-256"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "is not an ECDSA key on P-256"),
        (b" " * (2**16 + 1), "is too long"),
    ):
        with pytest.raises(errors.InvalidArgument, match=why):
            public_keys(pem, "k.pub")
    private = edwards.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for pem, passphrase, why in (
        (b"", None, "is no private key"),
        (KEY.public_pem(), None, "is no private key"),
        (private, None, "is not ECDSA"),
        (KEY.pem(b"word"), None, "only be read with"),
        (KEY.pem(), b"word", "only be read without"),
        (KEY.pem(b"word"), b"other", "or not its passphrase"),
    ):
        with pytest.raises(errors.InvalidArgument, match=why):
            PrivateKey.parse(pem, passphrase)
    again = PrivateKey.parse(KEY.pem(b"word"), b"word")
    assert KEY.public("").verifies(again.sign(CLAIM))
