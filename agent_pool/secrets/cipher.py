"""How secrets are encrypted at rest, and the file that holds the key: AES-256-GCM.

The name and the agents of a secret are authenticated with it: who can write the database, but has not the key, cannot
give an agent another's secret.
"""

import base64
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from agentruntime import errors
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_KEY_BITS = 256
# NIST SP 800-38D, section 8.2.2: random ones of 96 bits, for at most 2^32 values.
_NONCE_BYTES = 12
# A systemd credential has an ACL of its service's user, which shows as readable by the group.
_NOT_ALLOWED = stat.S_IRWXO | stat.S_IWGRP | stat.S_IXGRP


class Undecipherable(Exception):
    """It was encrypted with another key, or is damaged."""


def encrypt(key: bytes, name: str, agents: Sequence[str], value: bytes) -> bytes:
    """A nonce, and what `decrypt` reads."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, value, _context(name, agents))


def decrypt(key: bytes, name: str, agents: Sequence[str], sealed: bytes) -> bytes:
    """The value.

    Raises:
        Undecipherable: it is not this key's, of this name and of these agents.
    """
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _context(name, agents))
    except (InvalidTag, ValueError):
        raise Undecipherable from None


def _context(name: str, agents: Sequence[str]) -> bytes:
    return json.dumps(["agentruntime secret", name, *agents]).encode()


def read_key(path: Path) -> bytes | None:
    """The key in a file; None if there is no such file.

    Raises:
        FailedPrecondition: others may read the file, or there is something else in it.
    """
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            content = stream.read(1024)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise errors.FailedPrecondition(
            f"the key of the secrets, {path}, cannot be read: {error.strerror}; make it this user's own"
        ) from None
    if mode & _NOT_ALLOWED:
        raise errors.FailedPrecondition(
            f"the key of the secrets, {path}, may be read by other users; `chmod 600 {path}` ends that"
        )
    try:
        key = base64.urlsafe_b64decode(content.strip())
    except ValueError:
        key = b""
    if len(key) * 8 != _KEY_BITS:
        raise errors.FailedPrecondition(
            f"{path} holds no key of secrets, which is 32 bytes in base64; put the right file there"
        )
    return key


def make_key(path: Path) -> bytes:
    """A new key in a file that was not there; on disk when it returns.

    Raises:
        FailedPrecondition: it cannot be written there.
    """
    key = AESGCM.generate_key(_KEY_BITS)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(base64.urlsafe_b64encode(key) + b"\n")
            stream.flush()
            os.fsync(descriptor)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise errors.FailedPrecondition(f"the key of the secrets cannot be made: {path}: {error.strerror}") from None
    return key
