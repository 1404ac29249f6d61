"""Certificates for tests, made by the OpenSSL command as an operator would make them."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

_CONFIGURATION = """
[req]
distinguished_name = dn
prompt = no
[dn]
CN = {name}
"""


@dataclass(frozen=True)
class Made:
    """A certificate and its key."""

    cert: Path
    key: Path


def authority(directory: Path, name: str = "Test CA") -> Made:
    """An authority of its own."""
    return _request(directory, name, ["-x509", "-days", "30", *_extension("basicConstraints=critical,CA:true")])


def self_signed(directory: Path, name: str, sans: str) -> Made:
    """A certificate that signs itself."""
    more = [*_extension(f"subjectAltName={sans}"), *_extension("basicConstraints=critical,CA:false")]
    return _request(directory, name, ["-x509", "-days", "30", *more])


def issued(directory: Path, by: Made, name: str, sans: str, *, expired: bool = False) -> Made:
    """A certificate that an authority signs."""
    made = Made(directory / f"{name}.pem", directory / f"{name}.key")
    request = directory / f"{name}.csr"
    _new_key(made.key)
    _openssl("req", "-new", "-key", made.key, "-out", request, "-subj", f"/CN={name}")
    extensions = directory / f"{name}.ext"
    extensions.write_text(f"subjectAltName={sans}\nbasicConstraints=CA:false\nauthorityKeyIdentifier=keyid\n")
    # A moment that has gone by: openssl has no flag for it that is as old as Debian's.
    days = "-1" if expired else "30"
    _openssl(
        "x509", "-req", "-in", request, "-CA", by.cert, "-CAkey", by.key, "-CAcreateserial",
        "-days", days, "-extfile", extensions, "-out", made.cert,
    )  # fmt: skip
    return made


def _request(directory: Path, name: str, more: list[str]) -> Made:
    stem = name.lower().replace(" ", "-")
    made = Made(directory / f"{stem}.pem", directory / f"{stem}.key")
    _new_key(made.key)
    configuration = directory / f"{stem}.cnf"
    configuration.write_text(_CONFIGURATION.format(name=name))
    _openssl("req", "-new", "-key", made.key, "-out", made.cert, "-config", configuration, *more)
    return made


def _extension(text: str) -> list[str]:
    return ["-addext", text]


def _new_key(path: Path) -> None:
    _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path)


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
