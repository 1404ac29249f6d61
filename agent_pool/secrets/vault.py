"""The secrets of one pool: encrypted in `secrets.db`, in the clear in the pool's memory only.

It is the pool that hands them to workers, and that leaves them out of what agents print.
"""

import asyncio
import json
import os
import resource
import secrets
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from agentruntime import errors, log, sealed
from agentruntime.redaction import Redactor

from agent_pool.secrets import grants
from agent_pool.secrets.grants import Secret

# Values that were changed or removed: workers that have them may still print them.
_MOST_RETIRED = 256
# See agent_worker.secret_files; of the pool itself its user may want one, and then says so by a higher limit.
_NO_CORE = 1
_log = log.get("agent_pool.secrets")


@dataclass(frozen=True)
class Handed:
    """What one worker gets."""

    # One, as `agentruntime.sealed` makes it, or none.
    descriptors: list[int]
    # By the secret's name.
    versions: dict[str, str]


class Vault:
    """Of one pool, which alone uses the directory.

    Args:
        directory: where the database is.
        key_file: made with the first secret if it is not there.

    Raises:
        DataLoss: the database is none of ours.
        FailedPrecondition: there are secrets, and other users may read their key.
    """

    def __init__(self, directory: Path, key_file: Path) -> None:
        self._path = directory / "secrets.db"
        self._key_file = key_file
        self._kept: dict[str, Secret] = {}
        self._retired: deque[Secret] = deque(maxlen=_MOST_RETIRED)
        self._redactors: dict[str, Redactor] = {}
        # Of the values and the redactors made of them: threads that read and scrub logs ask for those.
        self._values = threading.Lock()
        self._changing = asyncio.Lock()
        if self._path.exists():
            self._kept = {each.name: each for each in self._load()}

    def all(self) -> list[Secret]:
        """By name."""
        return [self._kept[name] for name in sorted(self._kept)]

    def granted(self, agent: str, wanted: Sequence[str]) -> dict[str, Secret]:
        """See `grants.granted`."""
        return grants.granted(self._kept, agent, wanted)

    def versions(self, agent: str, wanted: Sequence[str]) -> dict[str, str]:
        """Of what a new worker would get, by the secret's name; nothing if it would not start."""
        try:
            return {each.name: each.version for each in self.granted(agent, wanted).values()}
        except errors.FailedPrecondition:
            return {}

    def hand_over(self, agent: str, wanted: Sequence[str]) -> Handed:
        """What a worker of an agent gets; its descriptor is the caller's.

        Raises:
            FailedPrecondition: see `grants.granted`.
        """
        found = self.granted(agent, wanted)
        descriptors = [sealed.seal({name: each.value or b"" for name, each in found.items()})] if found else []
        return Handed(descriptors, {each.name: each.version for each in found.values()})

    def redactor(self, agent: str) -> Redactor:
        """Of what an agent could print: the values that are or were for it. From any thread."""
        with self._values:
            redactor = self._redactors.get(agent)
            if redactor is None:
                values: dict[str, list[bytes]] = {}
                for each in (*self._kept.values(), *self._retired):
                    if each.value and each.is_for(agent):
                        values.setdefault(each.file_name, []).append(each.value)
                redactor = self._redactors[agent] = Redactor(values)
            return redactor

    async def put(self, name: str, value: bytes | None, agents: Sequence[str]) -> Secret:
        """Sets a secret; on disk when it returns.

        Args:
            name: its own.
            value: None to keep the one it has.
            agents: that may have it; empty to keep those that it has.

        Raises:
            InvalidArgument: it is new, and a value or agents are missing.
            FailedPrecondition: it cannot be encrypted: the key is gone.
            ResourceExhausted: the disk is full, or fails.
        """
        async with self._changing:
            before = self._kept.get(name)
            if value is None and (before is None or before.value is None):
                raise errors.InvalidArgument(f"secret '{name}' has no value yet; give it one")
            if not agents and before is None:
                raise errors.InvalidArgument(f"secret '{name}' is new; say for which agents it is: --agents my-agent")
            unchanged = before is not None and value in (None, before.value)
            secret = Secret(
                name=name,
                agents=tuple(agents) or (before.agents if before else ()),
                version=before.version if before and unchanged else secrets.token_hex(8),
                changed_at_s=before.changed_at_s if before and unchanged else time.time(),
                value=before.value if before and unchanged else value,
            )
            if secret != before:
                await asyncio.to_thread(self._write, secret)
                self._take_in(name, secret)
                _log.info("secret set", name=name, agents=secret.agents)
            return secret

    async def delete(self, name: str) -> None:
        """Removes a secret; from disk when it returns.

        Raises:
            NotFound: there is none.
            ResourceExhausted: the disk fails.
        """
        async with self._changing:
            if name not in self._kept:
                raise errors.NotFound(f"there is no secret '{name}'; `agent secrets list` shows them")
            await asyncio.to_thread(self._erase, name)
            self._take_in(name, None)
            _log.info("secret removed", name=name)

    def _take_in(self, name: str, secret: Secret | None) -> None:
        with self._values:
            if before := self._kept.pop(name, None):
                self._retired.append(before)
            if secret is not None:
                self._kept[name] = secret
            self._redactors.clear()

    # --- on disk, in a thread ------------------------------------------------------------------------------------

    def _load(self) -> Iterator[Secret]:
        from agent_pool.secrets import cipher  # noqa: PLC0415 — a pool without secrets starts 60 ms sooner

        _keep_no_core()
        try:
            with self._database() as database:
                rows = database.execute("SELECT name, agents, version, changed_at_s, sealed FROM secrets").fetchall()
        except sqlite3.DatabaseError:
            raise errors.DataLoss(f"{self._path} is damaged; move it away to begin with no secrets") from None
        key = cipher.read_key(self._key_file) if rows else None
        for name, agents, version, changed_at_s, encrypted in rows:
            allowed = tuple(json.loads(agents))
            try:
                value = cipher.decrypt(key, name, allowed, encrypted) if key else None
            except cipher.Undecipherable:
                value = None
            if value is None:
                _log.error("secret cannot be decrypted", name=name, key_file=str(self._key_file))
            yield Secret(name, allowed, version, changed_at_s, value)

    def _write(self, secret: Secret) -> None:
        from agent_pool.secrets import cipher  # noqa: PLC0415 — as above

        _keep_no_core()
        assert secret.value is not None
        key = cipher.read_key(self._key_file)
        if key is None and self._kept:
            raise errors.FailedPrecondition(
                f"the key of the secrets, {self._key_file}, is gone; put it back, or remove the secrets that were "
                "encrypted with it with `agent secrets delete`"
            )
        key = key or cipher.make_key(self._key_file)
        row = (
            secret.name,
            json.dumps(secret.agents),
            secret.version,
            secret.changed_at_s,
            cipher.encrypt(key, secret.name, secret.agents, secret.value),
        )
        with self._changed() as database:
            database.execute("INSERT OR REPLACE INTO secrets VALUES (?, ?, ?, ?, ?)", row)

    def _erase(self, name: str) -> None:
        with self._changed() as database:
            database.execute("DELETE FROM secrets WHERE name = ?", (name,))

    @contextmanager
    def _changed(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._database() as database:
                yield database
        except sqlite3.OperationalError as error:
            raise errors.ResourceExhausted(
                f"secrets cannot be written to {self._path}: {error}; free some of that disk"
            ) from None

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        with closing(sqlite3.connect(self._path, isolation_level=None)) as database:
            # One file, rarely written, and nothing left in it of what is gone.
            database.execute("PRAGMA journal_mode=DELETE")
            database.execute("PRAGMA synchronous=EXTRA")
            database.execute("PRAGMA secure_delete=ON")
            database.execute(
                "CREATE TABLE IF NOT EXISTS secrets (name TEXT PRIMARY KEY, agents TEXT NOT NULL, "
                "version TEXT NOT NULL, changed_at_s REAL NOT NULL, sealed BLOB NOT NULL) WITHOUT ROWID"
            )
            yield database


def _keep_no_core() -> None:
    """From now on this process holds values, and nobody should find them in a file after a crash."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (min(_NO_CORE, hard) if hard >= 0 else _NO_CORE, hard))
