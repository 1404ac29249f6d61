"""Secrets on their way from the pool to a worker: a sealed piece of memory, handed over as a descriptor.

It has no name that another process could open, is never on a disk, and cannot be changed once it is sealed; who
passes the descriptor on does not have to look inside.
"""

import base64
import fcntl
import json
import os
from collections.abc import Mapping

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
# Of all values of an agent, as they are; tmpfs charges them to its workers.
MOST_BYTES = 2**20
# Base64, names and the rest of it.
_MOST_SEALED_BYTES = 2 * MOST_BYTES


def seal(values: Mapping[str, bytes]) -> int:
    """A descriptor of memory that holds values by the name of their file; close it."""
    body = json.dumps({name: base64.b64encode(value).decode() for name, value in values.items()}).encode()
    descriptor = os.memfd_create("secrets", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as stream:
            stream.write(body)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def unseal(descriptor: int) -> dict[str, bytes]:
    """The values in what `seal` made; closes it.

    Raises:
        ValueError: something else was handed over.
    """
    try:
        body = os.pread(descriptor, _MOST_SEALED_BYTES, 0)
    finally:
        os.close(descriptor)
    return {str(name): base64.b64decode(value) for name, value in json.loads(body).items()}
