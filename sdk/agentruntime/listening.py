"""Where the gateway is to listen, and how: as flags for it, and as a supervisor remembers them."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Listen:
    """How the gateway listens, as its flags say; None leaves it to the gateway's own default."""

    host: str | None = None
    grpc_port: int | None = None
    http_port: int | None = None
    tls: bool | None = None
    # Files in PEM, by their whole paths.
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_ca: str | None = None
    tls_require_client_cert: bool | None = None
    allow_plaintext: bool | None = None
    # "call" or "none".
    anonymous: str | None = None

    def argv(self) -> list[str]:
        """As flags."""
        given = {_flag(each.name): getattr(self, each.name) for each in fields(self)}
        parts = [
            [flag] if value is True else [flag, str(value)] for flag, value in given.items() if value is not None
        ]
        return [part for both in parts for part in both]

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        """Has a parser take what `argv` gives."""
        for each in fields(cls):
            if "bool" in str(each.type):
                parser.add_argument(_flag(each.name), action="store_true", default=None)
            else:
                parser.add_argument(_flag(each.name), type=int if "int" in str(each.type) else str)

    @classmethod
    def of(cls, known: Mapping[str, Any]) -> "Listen":
        """Out of parsed flags, or of a record; other keys are left out."""
        return cls(**{each.name: known.get(each.name) for each in fields(cls)})


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
