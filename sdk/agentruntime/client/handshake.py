"""Why no connection comes about: gRPC says only that none did, so the handshake is made once more and looked at."""

import socket
import ssl
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from agentruntime import errors
from agentruntime.client.target import Target

if TYPE_CHECKING:
    from cryptography import x509

_LONGEST_S = 2.0
# Of X509_V_ERR_… (openssl-verify(1), "Diagnostics").
_NOT_YET, _EXPIRED, _SELF_SIGNED, _OTHER_NAME, _OTHER_ADDRESS = 9, 10, 18, 62, 64


def not_connected(to: Target, timeout_s: float) -> errors.Unavailable:
    """The error where the gateway could not be reached in so many seconds. Blocks for 2 s at most."""
    return tls_failure(to) or errors.Unavailable(
        f"nothing answered at {to.address} within {round(timeout_s, 2):g} s; `agent status` says what runs, "
        "`agent up` starts it",
        reason="NOT_CONNECTED",
    )


def tls_failure(to: Target) -> errors.Unavailable | None:
    """What keeps a handshake with whoever listens there from succeeding; None if nothing does, or nobody listens."""
    why = "" if to.address.startswith("unix:") else _look(to)
    return errors.Unavailable(why, reason="TLS_FAILED") if why else None


def _look(to: Target) -> str:
    host, _, port = to.address.rpartition(":")
    host = host.strip("[]")
    try:
        context = _context(to)
    except (OSError, ValueError) as error:
        return _unreadable(to) or f"the certificates to connect with cannot be used: {error}"
    try:
        with closing(socket.create_connection((host, int(port)), _LONGEST_S)) as plain:
            return _handshake(to, host, plain, context)
    except OSError:
        return ""


def _unreadable(to: Target) -> str:
    """Which of the files cannot be read: the library's own error names none."""
    for path in (to.ca, to.cert, to.key):
        try:
            if path:
                Path(path).open("rb").close()
        except OSError as error:
            return f"{path} cannot be read: {error.strerror}"
    return ""


def _handshake(to: Target, host: str, plain: socket.socket, context: ssl.SSLContext) -> str:
    try:
        with context.wrap_socket(plain, server_hostname=host) as encrypted:
            if not to.secure:
                return f"{to.address} answers over TLS only; write https://{to.address}"
            # With TLS 1.3 a server says only now what it thinks of the caller's certificate.
            encrypted.settimeout(0.3)
            encrypted.recv(1)
    except ssl.SSLCertVerificationError as error:
        return _refused_by_us(to, host, error)
    except TimeoutError:
        return ""
    except ssl.SSLError as error:
        return _refused_by_it(to, error) if to.secure else ""
    except ConnectionError:
        return f"{to.address} does not speak TLS; write http://{to.address} if that is meant" if to.secure else ""
    return ""


def _refused_by_it(to: Target, error: ssl.SSLError) -> str:
    said = (error.reason or "").lower()
    if "alert" in said and ("certificate" in said or "unknown_ca" in said or "handshake_failure" in said):
        if to.cert:
            return f"{to.address} does not accept the certificate in {to.cert}; use one of a CA that is trusted there"
        return (
            f"{to.address} asks callers for a certificate; name yours by --cert and --key, "
            "or UAPI_TLS_CERT and UAPI_TLS_KEY"
        )
    if "alert" in said or ("protocol" in said and "unsupported" in said):
        return f"{to.address} and this machine have no version of TLS in common ({said.replace('_', ' ')})"
    return f"{to.address} does not speak TLS; write http://{to.address} if that is meant"


def _refused_by_us(to: Target, host: str, error: ssl.SSLCertVerificationError) -> str:
    from agentruntime import authority, certificates  # noqa: PLC0415 — only who is refused waits for its libraries

    shown = _shown(to, host)
    if shown is None:
        return f"the certificate of {to.address} cannot be verified: {error.verify_message}"
    match error.verify_code:
        case n if n in (_OTHER_NAME, _OTHER_ADDRESS):
            hosts = certificates.hosts_in(certificates.names_of(shown))
            # The command leaves out what it is not told, but for this machine's own names.
            all_of_them = " ".join(f"--host {name}" for name in [*hosts, host] if name not in authority.LOCAL_HOSTS)
            return (
                f"the certificate of {to.address} is for {', '.join(hosts) or 'no host at all'}, not for {host}; "
                "connect by a name that it is for, or have it made for this one, too "
                f"(`agent certs init {all_of_them}`)"
            )
        case n if n in (_EXPIRED, _NOT_YET):
            when = shown.not_valid_after_utc if n == _EXPIRED else shown.not_valid_before_utc
            said = "ended" if n == _EXPIRED else "begins only"
            return (
                f"the certificate of {to.address} {said} on {when:%Y-%m-%d %H:%M} UTC; look at this machine's clock, "
                "or have whoever runs the platform renew it"
            )
        case n if n == _SELF_SIGNED:
            return (
                f"the certificate of {to.address} is signed by itself, and nobody here vouches for it; "
                "if it is the right one, name it by --ca FILE or UAPI_TLS_CA"
            )
        case _:
            known = to.ca or "this machine"
            return (
                f"the certificate of {to.address} is signed by '{certificates.issuer_of(shown)}', which {known} does "
                "not know; name that CA's certificate by --ca FILE or UAPI_TLS_CA"
            )


def _shown(to: Target, host: str) -> "x509.Certificate | None":
    """The certificate as it is shown, verified or not."""
    from cryptography import x509  # noqa: PLC0415 — as above

    _, _, port = to.address.rpartition(":")
    open_minded = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    open_minded.check_hostname = False
    open_minded.verify_mode = ssl.CERT_NONE
    try:
        with (
            closing(socket.create_connection((host, int(port)), _LONGEST_S)) as plain,
            open_minded.wrap_socket(plain, server_hostname=host) as encrypted,
        ):
            return x509.load_der_x509_certificate(encrypted.getpeercert(binary_form=True) or b"")
    except (OSError, ValueError):
        return None


def _context(to: Target) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=to.ca or None)
    if not to.secure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if to.cert and to.key:
        context.load_cert_chain(to.cert, to.key)
    context.set_alpn_protocols(["h2"])
    return context
