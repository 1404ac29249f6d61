"""`agent up`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from agentruntime.cli import output, platform, status
from agentruntime.home import Home
from agentruntime.listening import Listen


def command(
    host: Annotated[str | None, typer.Option(help="Address to listen on; 127.0.0.1 by default.")] = None,
    grpc_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of gRPC; 50051 by default, 0 takes a free one.")
    ] = None,
    http_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of HTTP; 8080 by default, 0 takes a free one.")
    ] = None,
    *,
    tls: Annotated[
        bool, typer.Option("--tls", help="TLS on both ports, with the certificates that `agent certs init` made.")
    ] = False,
    cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A certificate of your own for that, in PEM.")
    ] = None,
    key: platform.Key = None,
    ca: platform.CallersCa = None,
    require_client_cert: Annotated[
        bool, typer.Option("--require-client-cert", help="Callers must show a certificate.")
    ] = False,
    allow_plaintext: Annotated[
        bool, typer.Option("--allow-plaintext", help="Listen on any address without TLS: others can read along.")
    ] = False,
    anonymous: Annotated[
        Literal["call", "none"] | None,
        typer.Option(
            help="What callers without a credential may: none by default; call any agent that demands none."
        ),
    ] = None,
    format_: output.Output = None,
) -> None:
    """Start the platform on this machine.

    It goes on when this terminal closes, and restarts its parts when they die. Where it runs already, nothing
    changes; if it serves TLS otherwise than it is asked to here, or lets others in, that is an error.
    """
    home = Home.default()
    listen = Listen(
        host,
        grpc_port,
        http_port,
        tls=tls or None,
        tls_cert=platform.whole(cert),
        tls_key=platform.whole(key),
        tls_ca=platform.whole(ca),
        tls_require_client_cert=require_client_cert or None,
        allow_plaintext=allow_plaintext or None,
        anonymous=anonymous,
    )
    with output.progress("starting the platform"):
        started = platform.start_as_asked(home, listen)
    if not started and listen.argv():
        output.note("the platform runs already; addresses change with `agent down` and `agent up`")
    status.show(home, output.wants_json(format_))
