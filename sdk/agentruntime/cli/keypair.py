"""`agent keypair`."""

from pathlib import Path
from typing import Annotated

import typer

from agentruntime import errors, files
from agentruntime.cli import output, passphrase
from agentruntime.signing import PrivateKey


def command(
    name: Annotated[Path, typer.Argument(metavar="NAME", help="The files are NAME.key and NAME.pub.")],
    passphrase_file: passphrase.Option = None,
    format_: output.Output = None,
) -> None:
    """Make a key pair that signs images.

    NAME.key is private and stays with whoever signs; NAME.pub goes to whoever verifies. Nothing is overwritten.
    """
    private, public = (name.with_name(f"{name.name}.{kind}") for kind in ("key", "pub"))
    for path in (private, public):
        if path.exists() or path.is_symlink():
            raise errors.AlreadyExists(f"{path} is there already; choose another name")
    key = PrivateKey.generate()
    try:
        files.write_atomically(private, key.pem(passphrase.read(passphrase_file)))
        files.write_atomically(public, key.public_pem())
        public.chmod(0o644)
    except OSError as error:
        raise errors.FailedPrecondition(f"{name.parent} cannot be written ({error.strerror})") from None
    if output.wants_json(format_):
        output.print_json({"private": str(private), "public": str(public)})
        return
    print(f"made {private} and {public}")
    print(f"Sign with it:  agent sign IMAGE --key {private}")
