"""Keeps what the gateway knows of identity providers: their file, and their keys, fetched again and again.

A provider that does not answer keeps the keys that it had last, also over a restart of the gateway.
"""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from agentruntime import log
from agentruntime._proto.uapi.v1 import access_pb2 as proto
from agentruntime.errors import AgentError, DiskFull, InvalidArgument, Unavailable
from agentruntime.files import write_atomically
from agentruntime.oauth2.discovery import discover
from agentruntime.oauth2.exchange import ask

from uapi_gateway.access import jwks, providers
from uapi_gateway.access.jwks import KeySet
from uapi_gateway.access.providers import Provider
from uapi_gateway.settings import Settings

_log = log.get("uapi_gateway.identity")
# Between the failures of a provider that has no keys yet; doubled each time.
_FIRST_RETRY_S = 1.0
# Between two looks at the file. By inotify it would be heard of at once, but a machine can be out of instances.
_LOOK_S = 1.0


@dataclass(frozen=True)
class Known:
    """What is known of one provider."""

    provider: Provider
    # None until it has answered once.
    keys: KeySet | None = None
    # When the keys were fetched last; seconds since the epoch, 0 for never.
    fetched_at: float = 0.0
    # Why the last fetch failed; "" if it did not.
    error: str = ""
    # Fetches that failed in a row.
    failures: int = 0

    def message(self, *, whole: bool) -> proto.IdentityProvider:
        """What callers are told of it; `whole` with how the gateway gets on with it."""
        message = proto.IdentityProvider(
            name=self.provider.name, issuer=self.provider.issuer, audiences=self.provider.audiences
        )
        if login := self.provider.login:
            message.login.CopyFrom(proto.ProviderLogin(**login.model_dump()))
        if whole:
            message.keys = len(self.keys.keys) if self.keys else 0
            message.error = self.error
            if self.fetched_at:
                message.fetched_at.FromMilliseconds(round(self.fetched_at * 1000))
        return message


def next_fetch_s(known: Known, interval_s: float) -> float:
    """Seconds until a provider is asked again: soon where it has no keys at all."""
    if known.keys is not None or not known.failures:
        return interval_s
    return min(interval_s, _FIRST_RETRY_S * 2.0 ** min(known.failures - 1, 16))


class IdentityProviders:
    """The providers of the file, each with its keys. `listeners` are called on every change of what Envoy must know.

    Args:
        file: `identity-providers.yaml`.
        required: whether it must be there.
        cache: a directory for the keys, of the gateway alone.
        interval_s: between two fetches of a provider's keys.
    """

    def __init__(self, file: Path, *, required: bool, cache: Path, interval_s: float) -> None:
        self.listeners: list[Callable[[], None]] = []
        # What is wrong with the file that lies there now; the one before stays in force.
        self.file_error = ""
        self._file = file
        self._required = required
        self._cache = cache
        self._interval_s = interval_s
        self._content: bytes | None = None
        self._known: dict[str, Known] = {}
        self._fetching: dict[str, asyncio.Task[None]] = {}

    def all(self) -> list[Known]:
        """By name."""
        return [self._known[name] for name in sorted(self._known)]

    def with_keys(self) -> list[Known]:
        """Those whose tokens can be verified. Those of others are refused like those of strangers."""
        return [known for known in self.all() if known.keys is not None]

    def load(self) -> None:
        """Reads the file, and the keys that an earlier gateway has kept.

        Raises:
            InvalidArgument: the file is missing where it is required, or says something wrong; names the field.
        """
        self._content = self._read()
        for provider in providers.read(self._content, str(self._file)):
            self._known[provider.name] = self._remembered(provider)

    async def run(self) -> None:
        """Follows the file, and fetches keys, until it is cancelled."""
        try:
            self._fetch_those_that_are_there()
            while True:
                await asyncio.sleep(_LOOK_S)
                self._take_up()
        finally:
            for task in self._fetching.values():
                task.cancel()
            await asyncio.gather(*self._fetching.values(), return_exceptions=True)

    def _take_up(self) -> None:
        """Takes the file up if it is another now."""
        try:
            content = self._read()
            if content == self._content:
                return
            self._content = content
            named = {provider.name: provider for provider in providers.read(content, str(self._file))}
        except InvalidArgument as error:
            if error.message != self.file_error:
                _log.error("the identity providers are those of before", error=error.message)
            self.file_error = error.message
            return
        self.file_error = ""
        for name in self._known.keys() - named.keys():
            del self._known[name]
            self._cached_keys(name).unlink(missing_ok=True)
        for name, provider in named.items():
            before = self._known.get(name)
            if before is not None and providers.identity(before.provider) == providers.identity(provider):
                self._known[name] = replace(before, provider=provider)
            else:
                self._known[name] = Known(provider)
        _log.info("identity providers changed", providers=sorted(named))
        self._changed()
        for task in self._fetching.values():
            task.cancel()
        self._fetching = {}
        self._fetch_those_that_are_there()

    def _read(self) -> bytes:
        try:
            return self._file.read_bytes()
        except FileNotFoundError:
            if self._required:
                raise InvalidArgument(
                    f"{self._file}, which UAPI_GATEWAY_IDENTITY_PROVIDERS names, is not there",
                    reason="INVALID_CONFIG",
                ) from None
            return b""
        except OSError as error:
            raise InvalidArgument(f"{self._file} cannot be read: {error.strerror}", reason="INVALID_CONFIG") from None

    def _fetch_those_that_are_there(self) -> None:
        for name in self._known:
            self._fetching[name] = asyncio.create_task(self._keep_fetching(name))

    async def _keep_fetching(self, name: str) -> None:
        while True:
            known = self._known[name]
            try:
                keys = await asyncio.to_thread(fetch, known.provider)
            except AgentError as error:
                self._failed(name, error)
            else:
                self._fetched(name, keys)
            await asyncio.sleep(next_fetch_s(self._known[name], self._interval_s))

    def _failed(self, name: str, error: AgentError) -> None:
        known = self._known[name]
        # What a provider said may stand in it, with what no UTF-8 can hold.
        said = error.message.encode("utf-8", "backslashreplace").decode()
        if known.error != said:
            _log.warning(
                "an identity provider's keys cannot be fetched",
                provider=name,
                error=said,
                kept=known.keys is not None,
            )
        self._known[name] = replace(known, error=said, failures=known.failures + 1)

    def _fetched(self, name: str, keys: KeySet) -> None:
        known = self._known[name]
        if known.error:
            _log.info("an identity provider answers again", provider=name)
        after = Known(known.provider, keys, time.time())
        self._known[name] = after
        if known.keys == keys:
            return
        _log.info("keys of an identity provider", provider=name, kids=[key.get("kid", "") for key in keys.keys])
        for reason in keys.left_out:
            _log.warning("a key of an identity provider is not taken", provider=name, reason=reason)
        self._changed()
        try:
            self._remember(after)
        except DiskFull as error:
            _log.warning("the keys of an identity provider are not kept for the next start", error=error.message)

    def _changed(self) -> None:
        for listener in self.listeners:
            listener()

    def _cached_keys(self, name: str) -> Path:
        return self._cache / f"{name}.json"

    def _remember(self, known: Known) -> None:
        assert known.keys is not None
        content = {
            "identity": providers.identity(known.provider),
            "fetched_at": known.fetched_at,
            "keys": [dict(key) for key in known.keys.keys],
        }
        self._cache.mkdir(exist_ok=True, mode=0o700)
        write_atomically(self._cached_keys(known.provider.name), json.dumps(content).encode())

    def _remembered(self, provider: Provider) -> Known:
        """With the keys that were kept, if they are this provider's."""
        try:
            content = json.loads(self._cached_keys(provider.name).read_bytes())
            if content["identity"] != providers.identity(provider):
                return Known(provider)
            return Known(provider, jwks.reduced(content), float(content["fetched_at"]))
        except FileNotFoundError:
            return Known(provider)
        except (OSError, ValueError, KeyError, TypeError, AgentError) as error:
            _log.warning(
                "the kept keys of an identity provider cannot be read", provider=provider.name, error=str(error)
            )
            return Known(provider)


def identity_providers(settings: Settings) -> IdentityProviders:
    """Those of a gateway, with the keys that an earlier one has kept.

    Raises:
        InvalidArgument: their file says something wrong.
    """
    made = IdentityProviders(
        settings.identity_providers or settings.home.root / "identity-providers.yaml",
        required=settings.identity_providers is not None,
        cache=settings.home.state / "jwks",
        interval_s=settings.jwks_interval_s,
    )
    made.load()
    return made


def fetch(provider: Provider) -> KeySet:
    """Asks a provider for its keys. Blocks.

    Raises:
        InvalidArgument: its CA file cannot be used.
        Unavailable: it does not answer, or with something that is no key set.
    """
    ca_file = str(provider.ca_file or "")
    uri = provider.jwks_uri or discover(provider.issuer, ca_file=ca_file).jwks_uri
    if not uri:
        raise Unavailable(f"{provider.issuer} names no jwks_uri", reason="PROVIDER_UNAVAILABLE")
    answer = ask(uri, ca_file=ca_file)
    if answer.status != 200:
        raise Unavailable(f"{uri} answers HTTP {answer.status}", reason="PROVIDER_UNAVAILABLE")
    return jwks.reduced(answer.content)
