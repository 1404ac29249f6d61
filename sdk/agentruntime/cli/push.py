"""`agent push`."""

from typing import Annotated

import typer

from agentruntime import names
from agentruntime._proto.uapi.v1 import image_service_pb2 as image_pb2
from agentruntime.cli import output, platform

# Gigabytes may have to go over a slow line.
_TIMEOUT_S = 3600.0


def command(
    reference: Annotated[str, typer.Argument(metavar="IMAGE", help="An image that is there.")],
    destination: Annotated[
        str | None,
        typer.Argument(metavar="DESTINATION", help="host:port/path/name:tag; the image's own name by default."),
    ] = None,
    format_: output.Output = None,
) -> None:
    """Copy an image to a registry.

    With the credentials that `docker login` keeps. What the registry has already is not sent again.
    """
    wanted = names.ImageReference.parse(reference)
    to = names.ImageReference.parse(destination) if destination else wanted
    request = image_pb2.PushImageRequest(reference=str(wanted), destination=str(to) if destination else "")
    quiet = output.wants_json(format_)
    digest = ""
    with platform.connect() as client:
        for response in client.images.PushImage(request, timeout=_TIMEOUT_S):
            if response.WhichOneof("event") == "digest":
                digest = response.digest
            elif not quiet:
                output.note(response.progress)
    if quiet:
        output.print_json({"pushed": str(to), "digest": digest})
    else:
        print(f"pushed {to} ({digest})")
