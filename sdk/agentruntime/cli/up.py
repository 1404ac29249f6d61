"""`agent up`."""

from typing import Annotated

import typer

from agentruntime import supervisor
from agentruntime.cli import output, platform, status
from agentruntime.home import Home


def command(
    host: Annotated[str | None, typer.Option(help="Address to listen on; 127.0.0.1 by default.")] = None,
    grpc_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of gRPC; 50051 by default, 0 takes a free one.")
    ] = None,
    http_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of HTTP; 8080 by default, 0 takes a free one.")
    ] = None,
    format_: output.Output = None,
) -> None:
    """Start the platform on this machine.

    It goes on when this terminal closes, and restarts its parts when they die. Where it runs already, nothing
    changes.
    """
    home = Home.default()
    listen = supervisor.Listen(host, grpc_port, http_port)
    with output.progress("starting the platform"):
        started = platform.start(home, listen)
    if not started and listen.argv():
        output.note("the platform runs already; addresses change with `agent down` and `agent up`")
    status.show(home, output.wants_json(format_))
