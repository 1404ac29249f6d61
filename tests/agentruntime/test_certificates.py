"""Certificates in files: what is taken, and what is refused with which sentence."""

import base64
import datetime as dt
from pathlib import Path

import pytest
from agentruntime import authority, certificates
from agentruntime.authority import Wanted
from agentruntime.certificates import Files
from agentruntime.errors import FailedPrecondition, InvalidArgument

from tests.certificates import authority as openssl_authority
from tests.certificates import issued, self_signed

NOW = dt.datetime.now(dt.UTC)


@pytest.fixture
def pair(tmp_path: Path) -> Files:
    made = self_signed(tmp_path, "one", "DNS:one.example,IP:10.0.0.1,URI:spiffe://agentruntime/gateway")
    return Files(made.cert, made.key)


def test_a_pair_is_read_with_its_names_and_its_end(pair: Files) -> None:
    read = certificates.read_pair(pair)
    assert read.names == ("one.example", "10.0.0.1", "spiffe://agentruntime/gateway")
    assert certificates.hosts_in(read.names) == ["one.example", "10.0.0.1"]
    assert abs(read.ends - (NOW.timestamp() + 30 * 86400)) < 3600
    assert certificates.end_of(pair.cert) == read.ends


@pytest.mark.parametrize("part", ["cert", "key"])
def test_a_half_written_file_is_refused(pair: Files, part: str) -> None:
    path: Path = getattr(pair, part)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 2, 40):
        path.write_bytes(whole[:length])
        with pytest.raises(FailedPrecondition, match="is it written to the end"):
            certificates.read_pair(pair)


def test_what_does_not_belong_together_is_refused(tmp_path: Path, pair: Files) -> None:
    other = self_signed(tmp_path, "two", "DNS:two.example")
    with pytest.raises(FailedPrecondition, match="is not that of the certificate"):
        certificates.read_pair(Files(pair.cert, other.key))
    with pytest.raises(FailedPrecondition, match="cannot be read: No such file"):
        certificates.read_pair(Files(tmp_path / "none", pair.key))
    with pytest.raises(FailedPrecondition, match="holds no certificate"):
        certificates.read_authorities(pair.key)


def test_a_key_of_a_curve_that_is_not_known_is_refused(pair: Files) -> None:
    p256, other = bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2a8648ce3d030106")

    def changed(path: Path, label: str) -> None:
        content = base64.b64decode("".join(path.read_text().splitlines()[1:-1])).replace(p256, other)
        path.write_text(f"-----BEGIN {label}-----\n{base64.encodebytes(content).decode()}-----END {label}-----\n")

    changed(pair.key, "EC PRIVATE KEY")
    with pytest.raises(FailedPrecondition, match=f"{pair.key} has a key of a kind that is not known here"):
        certificates.read_pair(pair)
    changed(pair.cert, "CERTIFICATE")
    with pytest.raises(FailedPrecondition, match=f"the certificate in {pair.cert} has a key"):
        certificates.read_pair(pair)


def test_one_that_ended_does_not_replace_one_that_has_not() -> None:
    ended, good = (certificates.Pair(b"", b"", ends, ()) for ends in (5.0, 20.0))
    assert certificates.renewed(good, ended, 10.0) is good
    assert certificates.renewed(ended, None, 10.0) is ended
    with pytest.raises(FailedPrecondition, match="it has ended already"):
        certificates.renewed(ended, good, 10.0)


@pytest.mark.parametrize("name", ["c.pem", "c-key.pem", "c.key", "key.pem"])
def test_a_key_is_found_in_the_same_file_or_beside_it(tmp_path: Path, name: str) -> None:
    cert = tmp_path / "c.pem"
    cert.touch()
    (tmp_path / name).write_text("-----BEGIN PRIVATE KEY-----")
    assert certificates.key_beside(cert) == tmp_path / name


def test_the_end_is_said_when_it_is_near() -> None:
    path, ends = Path("/c.pem"), 1_800_000_000.0
    assert certificates.warning(path, ends, ends - certificates.NEAR_END_S - 1) == ""
    assert "ends on 2027-01-15 08:00 UTC" in certificates.warning(path, ends, ends - 10)
    assert "ended on 2027-01-15 08:00 UTC" in certificates.warning(path, ends, ends)


def test_an_authority_s_certificates_verify(tmp_path: Path) -> None:
    authority.make_authority(tmp_path, NOW)
    files = authority.issue(tmp_path, Wanted("server", ["localhost", "::1"], ["spiffe://a/b"], serves=True), NOW)
    assert certificates.read_pair(files).names == ("localhost", "::1", "spiffe://a/b")
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.glob("*.pem"))
    for host in ("a b", "", "é.example", "https://x"):
        with pytest.raises(InvalidArgument, match="is no host"):
            authority.issue(tmp_path, Wanted("server", [host]), NOW)
    theirs = openssl_authority(tmp_path)
    made = issued(tmp_path, theirs, "leaf", "DNS:x.example", expired=True)
    assert certificates.end_of(made.cert) < NOW.timestamp()
