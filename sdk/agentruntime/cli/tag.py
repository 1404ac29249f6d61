"""`agent tag`."""

from typing import Annotated

import typer

from agentruntime import names
from agentruntime._proto.uapi.v1 import image_service_pb2 as image_pb2
from agentruntime.cli import output, platform


def command(
    reference: Annotated[str, typer.Argument(metavar="IMAGE", help="An image that is there.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="name:tag, or host:port/path/name:tag to push it there.")],
    format_: output.Output = None,
) -> None:
    """Give an image one more name."""
    request = image_pb2.TagImageRequest(
        reference=str(names.ImageReference.parse(reference)), new_reference=str(names.ImageReference.parse(new))
    )
    with platform.connect() as client:
        image = client.images.TagImage(request).image
    if output.wants_json(format_):
        output.print_json(output.as_data(image))
    else:
        print(f"{request.reference} is also {image.reference} ({image.digest})")
