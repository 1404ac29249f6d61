"""Certificates and keys in files, as TLS needs them: read, checked against each other, and told when they end."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from agentruntime.errors import FailedPrecondition

# Who renews by hand needs so much warning.
NEAR_END_S = 14 * 24 * 3600.0
# What Envoy's BoringSSL takes.
_LEAST_RSA_BITS = 2048
# The names by which the platform's own parts know each other.
GATEWAY = "spiffe://agentruntime/gateway"
POOL = "spiffe://agentruntime/pool"


@dataclass(frozen=True)
class Files:
    """Where a certificate and its key are."""

    cert: Path
    key: Path


@dataclass(frozen=True)
class Pair:
    """A certificate, with those that vouch for it behind, and its key: PEM."""

    chain: bytes
    key: bytes
    # Seconds since the epoch.
    ends: float
    # Hosts, addresses and URIs that it is for.
    names: tuple[str, ...]


def key_beside(cert: Path) -> Path:
    """The key of a certificate of which only the file is known: in that file, or in one beside it.

    For `tls.pem` that is `tls-key.pem`, `tls.key` or `key.pem`, the first that is there.
    """
    try:
        if b"PRIVATE KEY-----" in cert.read_bytes():
            return cert
    except OSError:
        pass  # which is said when the certificate itself is read
    candidates = [cert.with_name(name) for name in (f"{cert.stem}-key.pem", f"{cert.stem}.key", "key.pem")]
    return next((path for path in candidates if path.exists()), candidates[0])


def read_pair(files: Files) -> Pair:
    """Reads a certificate with its key.

    Raises:
        FailedPrecondition: a file cannot be read, holds something else, or the two do not belong together.
    """
    chain, key = _read(files.cert), _read(files.key)
    leaf = _certificates(files.cert, chain)[0]
    try:
        public = leaf.public_key().public_bytes(*_SPKI)
    except (ValueError, UnsupportedAlgorithm):
        raise FailedPrecondition(f"the certificate in {files.cert} has a key of {_KEYS}") from None
    try:
        private = load_pem_private_key(key, None)
    except TypeError:
        raise FailedPrecondition(
            f"the key in {files.key} is encrypted; write it without a passphrase, readable for this user alone"
        ) from None
    except UnsupportedAlgorithm:
        raise FailedPrecondition(f"{files.key} has a key of {_KEYS}") from None
    except ValueError:
        raise FailedPrecondition(f"{files.key} holds no private key in PEM; is it written to the end?") from None
    if private.public_key().public_bytes(*_SPKI) != public:
        raise FailedPrecondition(f"the key in {files.key} is not that of the certificate in {files.cert}")
    usable = isinstance(private, ec.EllipticCurvePrivateKey) or (
        isinstance(private, rsa.RSAPrivateKey) and private.key_size >= _LEAST_RSA_BITS
    )
    if not usable:
        raise FailedPrecondition(f"the key in {files.key} must be of an elliptic curve, or RSA of 2048 bits or more")
    return Pair(chain, key, leaf.not_valid_after_utc.timestamp(), names_of(leaf))


def renewed(found: Pair, before: Pair | None, now: float) -> Pair:
    """What is taken of a pair that was found and the one before.

    Raises:
        FailedPrecondition: one that has ended would take the place of one that has not.
    """
    if before is not None and found.ends <= now < before.ends:
        raise FailedPrecondition("it has ended already")
    return found


def read_authorities(path: Path) -> bytes:
    """Reads certificates of authorities, in PEM.

    Raises:
        FailedPrecondition: the file cannot be read, or holds something else.
    """
    content = _read(path)
    _certificates(path, content)
    return content


def end_of(path: Path) -> float:
    """When the first certificate in a file ends, in seconds since the epoch.

    Raises:
        FailedPrecondition: the file cannot be read, or holds something else.
    """
    return _certificates(path, _read(path))[0].not_valid_after_utc.timestamp()


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """The hosts, addresses and URIs that a certificate is for."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    kinds = (x509.DNSName, x509.IPAddress, x509.UniformResourceIdentifier)
    return tuple(str(value) for kind in kinds for value in found.get_values_for_type(kind))


def issuer_of(certificate: x509.Certificate) -> str:
    """The name of who signed it, as people write it."""
    common = certificate.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(common[0].value) if common else certificate.issuer.rfc4514_string()


def warning(path: Path, ends: float, now: float) -> str:
    """What must be said of a certificate's end; "" while it is far away.

    Args:
        path: its file.
        ends: seconds since the epoch.
        now: the same.
    """
    day = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(ends))
    if ends <= now:
        return f"the certificate in {path} ended on {day}, and callers refuse it; put a new one in its place"
    if ends - now < NEAR_END_S:
        return f"the certificate in {path} ends on {day}; put a new one in its place before"
    return ""


_KEYS = "a kind that is not known here; use an elliptic curve, P-256 for one, or RSA"
_SPKI = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _certificates(path: Path, content: bytes) -> list[x509.Certificate]:
    try:
        found = x509.load_pem_x509_certificates(content)
        # Some mistakes show only when it is asked.
        _ = [(each.not_valid_after_utc, list(each.extensions)) for each in found]
    except (ValueError, x509.DuplicateExtension):
        raise FailedPrecondition(f"{path} holds no certificate in PEM; is it written to the end?") from None
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FailedPrecondition(f"{path} cannot be read: {error.strerror}") from None


def hosts_in(names: Iterable[str]) -> list[str]:
    """Of the names of a certificate, those that one connects to."""
    return [name for name in names if "://" not in name]
