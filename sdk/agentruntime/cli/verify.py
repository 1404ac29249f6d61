"""`agent verify`."""

from pathlib import Path
from typing import Annotated

import typer

from agentruntime import errors, names
from agentruntime._proto.uapi.v1 import image_service_pb2 as image_pb2
from agentruntime.cli import output, platform
from agentruntime.signing import Claim, Signature, public_keys, signer


def command(
    reference: Annotated[str, typer.Argument(metavar="IMAGE", help="An image that is there.")],
    key: Annotated[
        Path | None,
        typer.Option("--key", metavar="FILE", help="A public key; by default those that the pool trusts."),
    ] = None,
    format_: output.Output = None,
) -> None:
    """Say who signed an image, or why nobody who counts did.

    Then it ends with status 19.
    """
    wanted = names.ImageReference.parse(reference)
    keys = public_keys(_read(key), str(key)) if key else None
    with platform.connect() as client:
        found = client.images.ListSignatures(image_pb2.ListSignaturesRequest(reference=str(wanted)))
    claim = Claim.of(wanted, found.image.digest)
    if keys is None:
        if found.refusal:
            raise errors.ImageNotTrusted(found.refusal)
        by = found.image.signed_by or "the platform, which it came with"
    else:
        by = signer(claim, [Signature(each.payload, each.value) for each in found.signatures], keys)
    if output.wants_json(format_):
        output.print_json({"name": claim.name, "digest": claim.digest, "signed_by": by})
    else:
        print(f"{claim.name} ({claim.digest}) is signed by {by}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise errors.InvalidArgument(f"the public key {path} cannot be read ({error.strerror})") from None
