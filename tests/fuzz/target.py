"""What is fuzzed: a parser with the properties that hold for whatever it is given."""

import os
from collections.abc import Callable
from dataclasses import dataclass

# How long one input may take, on a machine that does other things too.
LONGEST_S = 5.0
# Where targets write: in memory where it can be had, since stores wait for the disk.
SCRATCH = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@dataclass(frozen=True)
class Target:
    """`check` gives an input to a parser, and raises where a property does not hold.

    `tokens` are words of its language, which a mutation would hardly hit upon.
    """

    name: str
    check: Callable[[bytes], None]
    tokens: tuple[bytes, ...] = ()


def text(data: bytes) -> str:
    """An input as text; every input is one."""
    return data.decode("utf-8", "replace")


def is_said(message: str) -> None:
    """An error's message can be sent, and is no book."""
    message.encode()
    assert len(message) < 100_000, f"a message of {len(message)} characters"
