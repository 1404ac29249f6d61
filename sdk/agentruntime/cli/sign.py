"""`agent sign`."""

from pathlib import Path
from typing import Annotated

import typer

from agentruntime import errors, names
from agentruntime._proto.uapi.v1 import image_service_pb2 as image_pb2
from agentruntime.cli import output, passphrase, platform
from agentruntime.signing import Claim, PrivateKey, Signature


def command(
    reference: Annotated[str, typer.Argument(metavar="IMAGE", help="An image that is there.")],
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="The private key, of `agent keypair`.")],
    passphrase_file: passphrase.Option = None,
    format_: output.Output = None,
) -> None:
    """Sign an image with a private key.

    What is signed is the image's digest and its name without the tag. `agent push` takes the signature along. The key
    is read here and goes nowhere.
    """
    wanted = names.ImageReference.parse(reference)
    private = PrivateKey.parse(_read(key), passphrase.read(passphrase_file))
    with platform.connect() as client:
        found = client.images.ListSignatures(image_pb2.ListSignaturesRequest(reference=str(wanted)))
        claim = Claim.of(wanted, found.image.digest)
        there = [Signature(each.payload, each.value) for each in found.signatures]
        public = private.public(str(key))
        if not any(public.verifies(each) and each.payload == claim.payload for each in there):
            signed = private.sign(claim)
            # By its digest: what was looked at, wherever the tag points by now.
            client.images.AddSignature(
                image_pb2.AddSignatureRequest(
                    reference=f"{wanted.name}@{claim.digest}",
                    signature=image_pb2.Signature(payload=signed.payload, value=signed.value),
                )
            )
    if output.wants_json(format_):
        output.print_json({"name": claim.name, "digest": claim.digest})
    else:
        print(f"signed {claim.name} ({claim.digest})")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise errors.InvalidArgument(
            f"the private key {path} cannot be read ({error.strerror}); `agent keypair` makes one"
        ) from None
