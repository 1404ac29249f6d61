"""`agent rmi`."""

from typing import Annotated

import typer

from agentruntime import names
from agentruntime._proto.uapi.v1 import image_service_pb2 as image_pb2
from agentruntime.cli import output, platform


def command(
    reference: Annotated[str, typer.Argument(metavar="IMAGE", help="name:tag, as `agent images` lists it.")],
    format_: output.Output = None,
) -> None:
    """Remove an image.

    Its data goes with its last tag. An image that an agent uses stays.
    """
    removed = str(names.ImageReference.parse(reference))
    with platform.connect() as client:
        client.images.RemoveImage(image_pb2.RemoveImageRequest(reference=removed))
    if output.wants_json(format_):
        output.print_json({"removed": removed})
    else:
        print(f"removed {removed}")
