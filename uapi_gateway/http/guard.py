"""Keeps web pages of others away from the HTTP port: a browser reaches loopback on any site's behalf.

A request must name this machine as its host (against DNS rebinding), and if it says where it comes from, that too.
Over TLS, or where the port is for other machines, it may name any host: a browser that was led here by another's name
gets no further than the certificate. What it says of where it comes from must be that same host.
"""

from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_LOCAL = frozenset(("localhost", "127.0.0.1", "::1"))


@dataclass(frozen=True)
class Door:
    """The port as callers see it."""

    port: int
    tls: bool = False
    # Other machines may come in.
    open: bool = False


def allowed(host: str, origin: str | None, door: Door) -> bool:
    """Whether a request with these headers may come in; `origin` is None where there is none."""
    scheme, port = ("https" if door.tls else "http"), door.port
    if door.tls or door.open:
        return origin is None or origin.lower() == f"{scheme}://{host.lower()}"
    if not _local(f"//{host}", port):
        return False
    return origin is None or (origin.startswith("http://") and _local(origin, port))


def _local(url: str, port: int) -> bool:
    if not url.isprintable():  # what splits it passes over tabs and the like
        return False
    try:
        parts = urlsplit(url)
        return parts.hostname in _LOCAL and (parts.port or 80) == port and not parts.path
    except ValueError:
        return False


class Guard:
    """The ASGI middleware."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = {key: value.decode("latin-1") for key, value in scope["headers"]}
            if not allowed(headers.get(b"host", ""), headers.get(b"origin"), self._door):
                text = f"this port answers requests to localhost:{self._door.port} only, and no other site's pages\n"
                await PlainTextResponse(text, status_code=403)(scope, receive, send)
                return
        await self._app(scope, receive, send)
