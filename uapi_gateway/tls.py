"""The gateway's certificates: read from their files, handed to Envoy, and read anew whenever the files change."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import watchfiles
from agentruntime import certificates, log
from agentruntime.certificates import Files, Pair
from agentruntime.errors import FailedPrecondition

from uapi_gateway.xds import resources, transport
from uapi_gateway.xds.cache import Cache
from uapi_gateway.xds.resources import Resource

_log = log.get("uapi_gateway.tls")
# A program that writes a certificate and its key does it within this; then they are read.
_QUIET_MS = 50
_MOST_MS = 200
# The files are looked at so often, even if nothing is heard of a change.
_ROUND_MS = 5_000
_REMINDER_S = 24 * 3600.0


@dataclass(frozen=True)
class Sources:
    """Where the gateway's certificates are; None where it has none."""

    # Of its ports.
    server: Files | None = None
    # Whose certificates of callers it takes.
    callers: Path | None = None
    # By which it is known where it calls.
    own: Files | None = None
    # Whose certificates it takes there.
    authority: Path | None = None
    # Nobody named the last two: they lie in `certs/`.
    found: bool = False

    def folders(self) -> set[Path]:
        """Where changes must be seen: a file may be replaced, or be a link to one in a folder that is."""
        pairs = [files for files in (self.server, self.own) if files]
        singles = [path for path in (self.callers, self.authority) if path]
        paths = [path for files in pairs for path in (files.cert, files.key)] + singles
        return {folder for path in paths for folder in (path.parent, path.resolve().parent) if folder.is_dir()}


class Certificates:
    """Those of one gateway, as they were when they were last as they should be."""

    def __init__(self, sources: Sources, cache: Cache) -> None:
        self._sources = sources
        self._cache = cache
        self.server: Pair | None = None
        self.own: Pair | None = None
        self.authority = b""
        # What was wrong with a secret's files when they were last read, so that it is said once.
        self._wrong: dict[str, str] = {}
        self._reminded: dict[str, float] = {}

    @property
    def own_files(self) -> Files | None:
        """Where the certificate is by which the gateway is known, if it has one."""
        return self._sources.own

    def load(self) -> None:
        """Reads all of them.

        Raises:
            FailedPrecondition: one cannot be read, or does not fit its key.
        """
        for name, read in self._readers().items():
            try:
                read()
            except FailedPrecondition as error:
                if not self._sources.found or name not in (transport.GATEWAY, transport.AUTHORITY):
                    raise
                _log.error("a certificate cannot be used", of=name, error=error.message)
        self._remind(time.time())

    async def watch(self) -> None:
        """Takes up what changes, until cancelled."""
        if not self._readers():
            await asyncio.Event().wait()
        # It tells of every change, wanted or not.
        logging.getLogger("watchfiles").setLevel(logging.WARNING)
        async for _ in watchfiles.awatch(
            *sorted(self._sources.folders()),
            watch_filter=None,
            debounce=_MOST_MS,
            step=_QUIET_MS,
            rust_timeout=_ROUND_MS,
            yield_on_timeout=True,
            recursive=False,
        ):
            self.reload()

    def reload(self) -> None:
        """Reads all of them again; what is not as it should be is said, and leaves the one before in use."""
        for name, read in self._readers().items():
            try:
                read()
            except FailedPrecondition as error:
                if self._wrong.get(name) != error.message:
                    _log.error("a new certificate is refused, the old one stays", of=name, error=error.message)
                self._wrong[name] = error.message
            else:
                self._wrong.pop(name, None)
        self._remind(time.time())

    def _readers(self) -> dict[str, Callable[[], None]]:
        from_ = self._sources
        readers: dict[str, Callable[[], None]] = {}
        if from_.server:
            readers[transport.SERVER] = self._read_server
        if from_.callers:
            readers[transport.CALLERS] = self._read_callers
        if from_.own:
            readers[transport.GATEWAY] = self._read_own
        if from_.authority:
            readers[transport.AUTHORITY] = self._read_authority
        return readers

    def _read_server(self) -> None:
        assert self._sources.server is not None
        self.server = certificates.renewed(certificates.read_pair(self._sources.server), self.server, time.time())
        self._publish(transport.certificate_secret(transport.SERVER, self.server))

    def _read_own(self) -> None:
        assert self._sources.own is not None
        self.own = certificates.renewed(certificates.read_pair(self._sources.own), self.own, time.time())
        self._publish(transport.certificate_secret(transport.GATEWAY, self.own))

    def _read_callers(self) -> None:
        assert self._sources.callers is not None
        found = certificates.read_authorities(self._sources.callers)
        self._publish(transport.authority_secret(transport.CALLERS, found))

    def _read_authority(self) -> None:
        assert self._sources.authority is not None
        self.authority = certificates.read_authorities(self._sources.authority)
        self._publish(transport.authority_secret(transport.AUTHORITY, self.authority))

    def _publish(self, secret: Resource) -> None:
        known = self._cache.get(resources.SECRET, secret.name)
        if known is None or known.version != secret.version:
            self._cache.put(resources.SECRET, secret)
            _log.info("certificate taken up" if known is None else "certificate changed", of=secret.name)

    def _remind(self, now: float) -> None:
        for files, pair in ((self._sources.server, self.server), (self._sources.own, self.own)):
            if files is None or pair is None:
                continue
            text = certificates.warning(files.cert, pair.ends, now)
            if text and now - self._reminded.get(text, 0.0) > _REMINDER_S:
                self._reminded[text] = now
                _log.warning(text)
