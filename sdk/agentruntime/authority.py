"""A certificate authority for one platform: what `agent certs` makes, in `certs/` of the runtime directory.

ca.pem, ca-key.pem              the authority; callers need ca.pem, and nobody ca-key.pem
server.pem, server-key.pem      of the gateway's ports
gateway.pem, gateway-key.pem    by which the gateway is known to the pool and to agents outside
pool.pem, pool-key.pem          of the pool, where it listens on TCP
agent-NAME.pem, client-NAME.pem with keys, of agents and programs that call
"""

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agentruntime import certificates
from agentruntime.certificates import Files
from agentruntime.errors import FailedPrecondition, InvalidArgument
from agentruntime.files import write_atomically

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
# Long, because every caller has to be given a new one; the others are made anew by the same command.
_AUTHORITY_DAYS = 3650
_DAYS = 397
# Clocks differ.
_SKEW = dt.timedelta(minutes=5)


@dataclass(frozen=True)
class Wanted:
    """What a certificate is to say."""

    name: str
    hosts: Sequence[str] = ()
    uris: Sequence[str] = ()
    # Whether it is for one that is called, too: it has hosts.
    serves: bool = False


def files(directory: Path, name: str) -> Files:
    """Where a certificate and its key are."""
    return Files(directory / f"{name}.pem", directory / f"{name}-key.pem")


def authority_file(directory: Path) -> Path:
    """What callers are given."""
    return files(directory, "ca").cert


def make_authority(directory: Path, now: dt.datetime) -> None:
    """Makes the authority, or another in its place."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"agentruntime {now:%Y-%m-%d %H:%M:%S}")
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    built = (
        _builder(name, name, key, now, _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(files(directory, "ca"), [built], key)


def issue(directory: Path, wanted: Wanted, now: dt.datetime) -> Files:
    """Makes a certificate, signed by the authority of that directory.

    Raises:
        FailedPrecondition: there is no authority.
        InvalidArgument: a host is none.
    """
    of = files(directory, "ca")
    pair = certificates.read_pair(of)
    authority = x509.load_pem_x509_certificates(pair.chain)[0]
    signer = load_pem_private_key(pair.key, None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise FailedPrecondition(f"the key in {of.key} is not one that `agent certs init` made")
    key = ec.generate_private_key(ec.SECP256R1())
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if wanted.serves else [])]
    names = [*map(_host, wanted.hosts), *map(x509.UniformResourceIdentifier, wanted.uris)]
    built = (
        _builder(_name(wanted.name), authority.subject, key, now, _DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    made = files(directory, wanted.name)
    _write(made, [built], key)
    return made


def _builder(
    name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: dt.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        pass
    labels = text.removeprefix("*.").split(".")
    if not all(label.replace("-", "a").replace("_", "a").isalnum() and label.isascii() for label in labels):
        raise InvalidArgument(f"'{text}' is no host; write a name like agents.example.com, or an address")
    return x509.DNSName(text)


def _write(to: Files, chain: Sequence[x509.Certificate], key: ec.EllipticCurvePrivateKey) -> None:
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    # Whoever watches them takes neither before both are there: they do not match.
    write_atomically(to.key, private)
    write_atomically(to.cert, b"".join(each.public_bytes(Encoding.PEM) for each in chain))
