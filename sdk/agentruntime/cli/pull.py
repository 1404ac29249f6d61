"""`agent pull`."""

from typing import Annotated

import typer

from agentruntime import names
from agentruntime._proto.uapi.v1 import image_service_pb2 as image_pb2
from agentruntime.cli import output, platform

# As for pushing.
_TIMEOUT_S = 3600.0


def command(
    reference: Annotated[str, typer.Argument(metavar="IMAGE", help="host:port/path/name:tag, or …/name@sha256:….")],
    format_: output.Output = None,
) -> None:
    """Copy an image from a registry.

    With the credentials that `docker login` keeps. Every byte is checked against its digest.
    """
    request = image_pb2.PullImageRequest(reference=str(names.ImageReference.parse(reference)))
    quiet = output.wants_json(format_)
    image = image_pb2.Image()
    with platform.connect() as client:
        for response in client.images.PullImage(request, timeout=_TIMEOUT_S):
            if response.WhichOneof("event") == "image":
                image = response.image
            elif not quiet:
                output.note(response.progress)
    if quiet:
        output.print_json(output.as_data(image))
        return
    print(f"pulled {image.reference} ({image.digest})")
    print(f"Run it:  agent run {image.reference}")
