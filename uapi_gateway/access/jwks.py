"""Key sets of identity providers (RFC 7517), reduced to what Envoy is to verify signatures with. Pure."""

import base64
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agentruntime.errors import Unavailable
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

# Envoy tries them all for a token that names none.
MOST_KEYS = 64
# NIST SP 800-131A.
_LEAST_RSA_BITS = 2048
_MOST_RSA_BITS = 8192
_CURVES: Mapping[str, tuple[Callable[[], ec.EllipticCurve], str]] = {
    "P-256": (ec.SECP256R1, "ES256"),
    "P-384": (ec.SECP384R1, "ES384"),
    "P-521": (ec.SECP521R1, "ES512"),
}
_BASE64URL = re.compile("[A-Za-z0-9_-]+")
_RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")


@dataclass(frozen=True)
class KeySet:
    """Public keys that Envoy surely can read: one that it cannot would take every other change of access with it."""

    keys: tuple[Mapping[str, str], ...] = ()
    # Why keys of the provider were left out, each with its kid.
    left_out: tuple[str, ...] = ()

    def as_json(self) -> str:
        """As a JWK set; the same keys give the same text."""
        return json.dumps({"keys": [dict(key) for key in self.keys]}, sort_keys=True)


def reduced(document: Mapping[str, Any]) -> KeySet:
    """The keys of a JWK set that may verify tokens, with nothing in them but what is needed for that.

    Secret keys (HMAC) are never among them, so that no token can be signed with a public one.

    Raises:
        Unavailable: it is no key set, or none of its keys can be used.
    """
    listed = document.get("keys")
    if not isinstance(listed, list):
        raise Unavailable("the key set has no list of keys", reason="PROVIDER_UNAVAILABLE")
    keys: list[Mapping[str, str]] = []
    left_out: list[str] = []
    for number, key in enumerate(listed):
        try:
            reduced_key = _reduced(key)
        except (ValueError, TypeError, OverflowError, KeyError, UnsupportedAlgorithm) as error:
            name = str(key.get("kid", number))[:64] if isinstance(key, dict) else str(number)
            why = f"{name}: {f'it has no {error}' if isinstance(error, KeyError) else error}"
            # JSON may hold what no UTF-8 can, and this is logged and told.
            left_out.append(why.encode("ascii", "backslashreplace").decode())
            continue
        if len(keys) == MOST_KEYS:
            left_out.append(f"all from number {number} on: there are more than {MOST_KEYS}")
            break
        keys.append(reduced_key)
    if not keys:
        raise Unavailable(
            f"none of the provider's {len(listed)} keys can be used" + (f" ({left_out[0]})" if left_out else ""),
            reason="PROVIDER_UNAVAILABLE",
        )
    return KeySet(tuple(keys), tuple(left_out[:MOST_KEYS]))


def _reduced(key: Any) -> dict[str, str]:
    if not isinstance(key, dict):
        raise TypeError("it is no object")
    if key.get("use", "sig") != "sig" or "verify" not in key.get("key_ops", ["verify"]):
        raise ValueError("it is not for signatures")
    kind = key.get("kty")
    if kind == "RSA":
        made = _rsa(key)
    elif kind == "EC":
        made = _ec(key)
    elif kind == "OKP":
        made = _okp(key)
    else:
        raise ValueError(f"keys of type {str(kind)[:16]} are not taken")
    if "kid" in key:
        kid = key["kid"]
        # Of JSON's other texts, Envoy refuses some (lone surrogates), and all other changes of access with them.
        if not isinstance(kid, str) or not 0 < len(kid) <= 256 or not kid.isascii() or not kid.isprintable():
            raise ValueError("its kid is no short text of printable ASCII")
        made["kid"] = key["kid"]
    return made


def _rsa(key: Mapping[str, Any]) -> dict[str, str]:
    modulus, exponent = _number(key["n"]), _number(key["e"])
    if not _LEAST_RSA_BITS <= modulus.bit_length() <= _MOST_RSA_BITS:
        raise ValueError(f"RSA keys of {modulus.bit_length()} bits are not taken")
    # Checks both.
    rsa.RSAPublicNumbers(exponent, modulus).public_key()
    algorithm = key.get("alg")
    if algorithm is not None and algorithm not in _RSA_ALGORITHMS:
        raise ValueError(f"the algorithm {str(algorithm)[:16]} is not taken")
    made = {"kty": "RSA", "n": key["n"], "e": key["e"]}
    return made if algorithm is None else {**made, "alg": algorithm}


def _ec(key: Mapping[str, Any]) -> dict[str, str]:
    if key.get("crv") not in _CURVES:
        raise ValueError(f"the curve {str(key.get('crv'))[:16]} is not taken")
    curve, algorithm = _CURVES[key["crv"]]
    if key.get("alg", algorithm) != algorithm:
        raise ValueError(f"the algorithm {str(key['alg'])[:16]} is not taken")
    # Checks that the point is on the curve.
    ec.EllipticCurvePublicNumbers(_number(key["x"]), _number(key["y"]), curve()).public_key()
    return {"kty": "EC", "crv": key["crv"], "x": key["x"], "y": key["y"], "alg": algorithm}


def _okp(key: Mapping[str, Any]) -> dict[str, str]:
    if key.get("crv") != "Ed25519":
        raise ValueError(f"the curve {str(key.get('crv'))[:16]} is not taken")
    ed25519.Ed25519PublicKey.from_public_bytes(_bytes(key["x"]))
    return {"kty": "OKP", "crv": "Ed25519", "x": key["x"], "alg": "EdDSA"}


def _number(text: Any) -> int:
    return int.from_bytes(_bytes(text))


def _bytes(text: Any) -> bytes:
    """RFC 7515's base64url without padding, and nothing else: Envoy is as strict."""
    if not isinstance(text, str) or not _BASE64URL.fullmatch(text):
        raise ValueError("a part of it is not base64url")
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
