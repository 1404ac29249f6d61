import json
from typing import Any

import pytest
from agentruntime import errors
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.identity_provider import SigningKey, encoded, number
from uapi_gateway.access.jwks import MOST_KEYS, reduced

RSA = SigningKey("one").public
_POINT = ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
EC = {
    "kty": "EC",
    "crv": "P-256",
    "kid": "ec",
    "x": encoded(_POINT.x.to_bytes(32)),
    "y": encoded(_POINT.y.to_bytes(32)),
}
ED = {"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": encoded(bytes(range(32)))}
_SMALL = rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key().public_numbers()


def test_the_keys_that_are_taken() -> None:
    found = reduced({"keys": [RSA | {"x5c": ["MII"], "d": "secret"}, EC | {"alg": "ES256"}, ED]})
    assert [key["kid"] for key in found.keys] == ["one", "ec", "ed"]
    assert not found.left_out
    # Nothing but what is needed to verify.
    assert set(found.keys[0]) == {"kty", "kid", "alg", "n", "e"}
    assert "secret" not in found.as_json()
    assert [key.get("alg") for key in found.keys] == ["RS256", "ES256", "EdDSA"]
    # As they are kept on disk.
    assert reduced(json.loads(found.as_json())) == found


@pytest.mark.parametrize(
    ("key", "why"),
    [
        # With a secret key, whoever reads the key set could sign.
        ({"kty": "oct", "k": "c2VjcmV0", "kid": "s"}, "s: keys of type oct"),
        (RSA | {"use": "enc"}, "not for signatures"),
        (RSA | {"key_ops": ["encrypt"]}, "not for signatures"),
        (RSA | {"alg": "RSA-OAEP"}, "RSA-OAEP is not taken"),
        (RSA | {"alg": "HS256"}, "HS256 is not taken"),
        (RSA | {"n": number(_SMALL.n)}, "1024 bits"),
        (RSA | {"n": RSA["n"] + "="}, "base64url"),
        (RSA | {"n": 7}, "base64url"),
        (RSA | {"e": "AA"}, "e must be"),
        ({"kty": "RSA", "kid": "x"}, "x: it has no 'n'"),
        (RSA | {"kid": 7}, "kid"),
        (RSA | {"kid": "\ud800"}, "\\ud800: its kid is no short text"),
        (RSA | {"kid": "a\nb"}, "its kid is no short text"),
        (RSA | {"n": RSA["n"][:-1] + "+"}, "base64url"),
        ({"kty": "\ud800"}, "keys of type \\ud800"),
        (EC | {"crv": "secp256k1"}, "secp256k1 is not taken"),
        (EC | {"alg": "ECDH-ES"}, "ECDH-ES is not taken"),
        (EC | {"x": EC["y"], "y": EC["x"]}, ""),
        (ED | {"x": "AAAA"}, "32 bytes"),
        (ED | {"crv": "X25519"}, "X25519 is not taken"),
        ({"kty": None}, "type None"),
        ("text", "no object"),
    ],
)
def test_the_keys_that_are_not(key: Any, why: str) -> None:
    found = reduced({"keys": [key, RSA | {"kid": "good"}]})
    assert [each["kid"] for each in found.keys] == ["good"]
    assert why in found.left_out[0]
    with pytest.raises(errors.Unavailable, match="none of the provider's 1 keys"):
        reduced({"keys": [key]})


def test_what_is_no_key_set() -> None:
    documents: tuple[dict[str, Any], ...] = ({}, {"keys": {}}, {"keys": None})
    for document in documents:
        with pytest.raises(errors.Unavailable):
            reduced(document)
    assert len(reduced({"keys": [RSA] * (MOST_KEYS + 9)}).keys) == MOST_KEYS


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_FIELDS = st.sampled_from(["kty", "kid", "alg", "use", "key_ops", "n", "e", "crv", "x", "y"])


# A busy machine is slow at drawing, too.
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([RSA, EC, ED]), st.dictionaries(_FIELDS, _JSON, max_size=3))
def test_no_key_of_any_form_is_an_unforeseen_error(good: dict[str, Any], changed: dict[str, Any]) -> None:
    found = reduced({"keys": [good | changed, RSA]})
    assert 1 <= len(found.keys) <= 2
