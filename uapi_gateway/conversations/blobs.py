"""Where the bodies of large events lie: in files of their own, or in a table. Each belongs to one conversation."""

import asyncio
import contextlib
import os
import shutil
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from agentruntime.errors import DataLoss
from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects.postgresql import insert

from . import tables

# A conversation's number and the SHA-256 of what is there.
Name = tuple[int, bytes]


class Blobs(Protocol):
    """Written within the transaction that writes their events, and gone after the one that deletes them."""

    def write(self, connection: Connection, blobs: Mapping[Name, bytes]) -> None:
        """Has them on disk when the transaction is."""

    def read(self, connection: Connection, name: Name) -> bytes:
        """Raises `DataLoss` if it is not there or not what was written."""

    def remove(self, connection: Connection, names: Iterable[Name]) -> None:
        """Removes some of a conversation's; within the transaction that deletes their events."""

    async def removed(self, names: Iterable[Name], conversations: Iterable[int]) -> None:
        """After that transaction: some blobs, and all of some conversations."""


class FileBlobs:
    """Files: `<conversation>/<hash>` in a directory.

    Args:
        directory: made if it is not there.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, connection: Connection, blobs: Mapping[Name, bytes]) -> None:
        """Synced, before their rows are: what a crash leaves is a file too many, which `sweep` finds."""
        for name, body in blobs.items():
            path = self._path(name)
            if not path.parent.is_dir():
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                _sync(path.parent.parent)
            # Not in place: the same may be there already, and be needed.
            new = path.with_suffix(".new")
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            new.rename(path)
        for directory in {self._path(name).parent for name in blobs}:
            _sync(directory)

    def read(self, connection: Connection, name: Name) -> bytes:
        """What the file has."""
        path = self._path(name)
        try:
            body = path.read_bytes()
        except FileNotFoundError:
            body = b""
        if sha256(body).digest() != name[1]:
            raise DataLoss(f"{path} is not what was written there; restore it from a backup")
        return body

    def remove(self, connection: Connection, names: Iterable[Name]) -> None:
        """Files go after the transaction: until then they may be needed."""

    async def removed(self, names: Iterable[Name], conversations: Iterable[int]) -> None:
        """Unlinks them."""
        await asyncio.to_thread(self._removed, list(names), list(conversations))

    def sweep(self, wanted: set[Name]) -> None:
        """Removes what a crash between files and rows has left: everything else than these."""
        if not self._directory.is_dir():
            return
        paths = {self._path(name) for name in wanted}
        for directory in self._directory.iterdir():
            for path in directory.iterdir():
                if path not in paths:
                    path.unlink()
            with contextlib.suppress(OSError):  # not empty
                directory.rmdir()

    def _path(self, name: Name) -> Path:
        return self._directory / str(name[0]) / name[1].hex()

    def _removed(self, names: list[Name], conversations: list[int]) -> None:
        for name in names:
            self._path(name).unlink(missing_ok=True)
        for conversation in conversations:
            with contextlib.suppress(FileNotFoundError):  # most have no large events
                shutil.rmtree(self._directory / str(conversation))


class TableBlobs:
    """Rows of PostgreSQL."""

    def write(self, connection: Connection, blobs: Mapping[Name, bytes]) -> None:
        """In the transaction itself."""
        if blobs:
            rows = [
                {"conversation": conversation, "hash": digest, "body": body}
                for (conversation, digest), body in blobs.items()
            ]
            connection.execute(insert(tables.blobs).on_conflict_do_nothing(), rows)

    def read(self, connection: Connection, name: Name) -> bytes:
        """What the row has."""
        table = tables.blobs.c
        wanted = select(table.body).where(table.conversation == name[0], table.hash == name[1])
        body: bytes | None = connection.execute(wanted).scalar()
        if body is None:
            raise DataLoss(f"blob {name[1].hex()} of conversation {name[0]} is gone; restore it from a backup")
        return body

    def remove(self, connection: Connection, names: Iterable[Name]) -> None:
        """In the transaction itself."""
        table = tables.blobs.c
        for conversation, digest in names:
            connection.execute(delete(tables.blobs).where(table.conversation == conversation, table.hash == digest))

    async def removed(self, names: Iterable[Name], conversations: Iterable[int]) -> None:
        """Nothing is left to do."""


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
