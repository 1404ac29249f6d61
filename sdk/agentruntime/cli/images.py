"""`agent images`."""

from agentruntime import units
from agentruntime._proto.uapi.v1 import image_service_pb2 as image_pb2
from agentruntime.cli import output, platform

_DIGEST_SHOWN = len("sha256:") + 12


def command(format_: output.Output = None) -> None:
    """List images.

    With the container images that were made of them in the container engine, and the pool's trusted key that signed
    them; `?` stands for signatures by no such key.
    """
    with platform.connect() as client:
        images = client.images.ListImages(image_pb2.ListImagesRequest()).images
    if output.wants_json(format_):
        output.print_json([output.as_data(image) for image in images])
        return
    rows = [
        [
            image.reference,
            image.digest[:_DIGEST_SHOWN],
            units.format_size(image.size_bytes),
            image.container_image[:_DIGEST_SHOWN] or "-",
            _signed(image),
            "built in" if image.built_in else image.created_at.ToDatetime().strftime("%Y-%m-%d %H:%M"),
        ]
        for image in images
    ]
    output.print_table(["IMAGE", "DIGEST", "SIZE", "CONTAINER IMAGE", "SIGNED BY", "CREATED (UTC)"], rows)


def _signed(image: image_pb2.Image) -> str:
    return image.signed_by or ("?" if image.signatures else "-")
