"""Why no connection comes about, said in a sentence: against servers with OpenSSL's own certificates."""

import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from agentruntime import errors
from agentruntime.client import AsyncClient, Client
from agentruntime.client.handshake import not_connected, tls_failure
from agentruntime.client.target import Target

from tests.certificates import Made, authority, issued, self_signed

HERE = "DNS:localhost,IP:127.0.0.1"


@contextlib.contextmanager
def serving(made: Made | None, *, callers: Made | None = None) -> Iterator[str]:
    """The address of a server that makes handshakes and no more. Without a certificate it greets in plain."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if made:
        context.load_cert_chain(made.cert, made.key)
    if callers:
        context.load_verify_locations(callers.cert)
        context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            while True:
                try:
                    plain, _ = listening.accept()
                except OSError:
                    return
                with plain, contextlib.suppress(OSError):
                    if not made:
                        plain.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                        continue
                    with context.wrap_socket(plain, server_side=True) as encrypted:
                        encrypted.sendall(b"hello")

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"localhost:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def said(address: str, ca: Made | None = None, own: Made | None = None, *, secure: bool = True) -> str:
    files = [str(path) for path in (ca and ca.cert, own and own.cert, own and own.key) if path]
    to = Target(address, secure, True, "", 1.0, *files)
    failure = tls_failure(to)
    if failure is None:
        return ""
    assert failure.reason == "TLS_FAILED"
    assert "\n" not in failure.message
    return failure.message


@pytest.fixture
def ca(tmp_path: Path) -> Made:
    return authority(tmp_path)


def test_a_good_certificate_is_no_failure(tmp_path: Path, ca: Made) -> None:
    with serving(issued(tmp_path, ca, "good", HERE)) as address:
        assert said(address, ca) == ""


def test_each_wrong_certificate_has_its_sentence(tmp_path: Path, ca: Made) -> None:
    other = authority(tmp_path, "Other CA")
    for made, trusted, words in (
        (issued(tmp_path, ca, "a", HERE, expired=True), ca, "ended on 20.* UTC; look at this machine's clock, or"),
        (issued(tmp_path, ca, "b", "DNS:b.example"), ca, r"is for b\.example, not for localhost; connect by a name"),
        # The command that is advised leaves no name out.
        (
            issued(tmp_path, ca, "several", "DNS:b.example,DNS:c.example,IP:::1"),
            ca,
            "certs init --host b.example --host c.example`",
        ),
        (issued(tmp_path, other, "c", HERE), ca, r"signed by 'Other CA', which .*test-ca\.pem does not know; name"),
        (issued(tmp_path, other, "d", HERE), None, "signed by 'Other CA', which this machine does not know; name"),
        (self_signed(tmp_path, "e", HERE), ca, "signed by itself, .* name it by --ca FILE or UAPI_TLS_CA"),
    ):
        with serving(made) as address:
            assert re.search(words, said(address, trusted))


def test_a_caller_s_certificate_that_is_missing_or_wrong(tmp_path: Path, ca: Made) -> None:
    other = authority(tmp_path, "Other CA")
    with serving(issued(tmp_path, ca, "server", HERE), callers=ca) as address:
        assert "asks callers for a certificate; name yours by --cert" in said(address, ca)
        mine = issued(tmp_path, ca, "mine", "DNS:mine")
        assert said(address, ca, mine) == ""
        theirs = issued(tmp_path, other, "theirs", "DNS:theirs")
        assert f"does not accept the certificate in {theirs.cert}" in said(address, ca, theirs)


def test_tls_and_plain_text_meet(tmp_path: Path, ca: Made) -> None:
    with serving(None) as address:
        assert said(address, ca) == f"{address} does not speak TLS; write http://{address} if that is meant"
        assert said(address, secure=False) == ""
    with serving(issued(tmp_path, ca, "good", HERE)) as address:
        assert said(address, secure=False) == f"{address} answers over TLS only; write https://{address}"


def test_nobody_there_is_no_failure_of_tls() -> None:
    assert tls_failure(Target("localhost:1", True, True, "", 1.0)) is None
    assert not_connected(Target("localhost:1", True, True, "", 1.0), 1.0).reason == "NOT_CONNECTED"
    assert tls_failure(Target("unix:/nowhere", False, True, "", 1.0)) is None


async def test_clients_say_it_too(tmp_path: Path, ca: Made) -> None:
    with serving(self_signed(tmp_path, "own", HERE)) as address:
        with Client(f"https://{address}", ca=ca.cert, timeout_s=0.5) as client:
            with pytest.raises(errors.Unavailable, match="signed by itself"):
                client.generate_text("a", "x")
            with pytest.raises(errors.Unavailable, match="signed by itself"):
                client.await_connection(0.2)
        asynchronous = AsyncClient(f"https://{address}", ca=ca.cert, timeout_s=0.5)
        with pytest.raises(errors.Unavailable, match="signed by itself"):
            await asynchronous.generate_text("a", "x")
        await asynchronous.close()


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, ca: Made) -> None:
    nowhere = tmp_path / "nowhere.pem"
    with serving(issued(tmp_path, ca, "server", HERE)) as address:
        assert said(address, Made(nowhere, nowhere)) == f"{nowhere} cannot be read: No such file or directory"
        own = Made(ca.cert, nowhere)
        assert said(address, ca, own) == f"{nowhere} cannot be read: No such file or directory"


def test_files_that_are_not_there_or_alone(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidArgument, match="cannot be read: No such file"):
        Client("https://localhost:1", ca=tmp_path / "none").gateway  # noqa: B018 — the channel is made at its first use
    with pytest.raises(errors.InvalidArgument, match="belong together"):
        Client("https://localhost:1", cert=tmp_path / "cert.pem")
