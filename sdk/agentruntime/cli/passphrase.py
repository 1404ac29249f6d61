"""The option that names the file with a private key's passphrase. Not the passphrase: others see command lines."""

from pathlib import Path
from typing import Annotated

import typer

from agentruntime import errors

Option = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file", metavar="FILE", help="Its first line locks the private key; by default none does."
    ),
]


def read(path: Path | None) -> bytes | None:
    """The passphrase in a file; None without one.

    Raises:
        InvalidArgument: it cannot be read, or is empty.
    """
    if path is None:
        return None
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise errors.InvalidArgument(f"{path} cannot be read ({error.strerror})") from None
    if not lines or not lines[0]:
        raise errors.InvalidArgument(f"the first line of {path} is empty; write the passphrase there")
    return lines[0]
