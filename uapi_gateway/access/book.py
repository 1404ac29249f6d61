"""The keys, grants and rules in force: kept equal to the store and the registry, and published to Envoy."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

from agentruntime import log
from agentruntime.errors import AlreadyExists, NotFound
from agentruntime.files import write_atomically
from agentruntime.home import Home

from uapi_gateway.access import keys
from uapi_gateway.access.certified import UNSAID, Certified
from uapi_gateway.access.identity import IdentityProviders
from uapi_gateway.access.keys import ALL, LOCAL, Key, Wanted
from uapi_gateway.access.policy import EVERYTHING, Policy
from uapi_gateway.access.store import KeyStore
from uapi_gateway.registry import Demands, Registry
from uapi_gateway.xds import filters, resources, rules, tokens
from uapi_gateway.xds.cache import Cache

_log = log.get("uapi_gateway.access")
# An expired key is refused by what stands in it; this only takes it out of the lists.
_EXPIRY_TICK_S = 60.0
# Agents whose scopes are rules of their own, of a kilobyte each, which are all sent again when one of them changes.
MOST_NAMED = 64


class Book:
    """All keys, and the policy that they and the agents make.

    Args:
        store: where keys are kept.
        registry: the agents; followed from `publish` on.
        cache: what Envoy is sent.
        identity: whose tokens are taken; followed from `publish` on.
        anonymous: callers without a credential may call agents that demand none.
    """

    def __init__(
        self, store: KeyStore, registry: Registry, cache: Cache, identity: IdentityProviders, *, anonymous: bool
    ) -> None:
        self._store = store
        self._registry = registry
        self._cache = cache
        self._identity = identity
        self._anonymous = anonymous
        self._keys = {key.name: key for key in store.load()}
        # Of agents that are gone, too: their rules must not go before they do.
        self._certified = {said.uri: said for said in store.load_certified()}
        self._demands: dict[str, Demands] = {}
        self._permitted: dict[str, tuple[str, ...]] = {}
        # In the order in which they came: with many, one more changes none of those before it.
        self._agents: dict[str, str] = {}
        self.policy = Policy()
        # Each is called with the keys, when they have changed.
        self.listeners: list[Callable[[list[Key]], None]] = []
        # There are rules of keys that were revoked.
        self._stale = False
        # One change at a time, so that the store and the policy agree.
        self._changing = asyncio.Lock()

    def publish(self, home: Home) -> None:
        """Makes the user's own key where it is missing, fills the cache, and follows the registry from then on.

        Raises:
            DiskFull: there is no room for the key.
        """
        self._make_own(home)
        for agent in self._registry.agents():
            self._take(agent.agent_id)
        self._publish_identity()
        self._registry.listeners.append(self._changed)
        self._identity.listeners.append(self._publish_identity)

    def close(self) -> None:
        self._store.close()

    def every(self) -> list[Key]:
        """All keys, by name."""
        return [self._keys[name] for name in sorted(self._keys)]

    async def create(self, wanted: Wanted) -> tuple[str, Key]:
        """A new key: on disk, and published.

        Raises:
            InvalidArgument: such a key cannot be made.
            AlreadyExists: a live key has that name.
            DiskFull: there is no room.
        """
        keys.check(wanted)
        async with self._changing:
            now = time.time()
            before = self._keys.get(wanted.name)
            if wanted.name == LOCAL or (before is not None and before.live(now)):
                raise AlreadyExists(f"there is a key named '{wanted.name}'; take another name, or revoke it first")
            secret, key = keys.mint(wanted, now)
            await self._store.save(key)
            self._keys[key.name] = key
            self._publish_changed()
        return secret, key

    async def revoke(self, name: str) -> Key:
        """Ends a key, named by its name or id: off the disk, and published.

        Raises:
            NotFound: there is no such key.
        """
        async with self._changing:
            found = next((key for key in self._keys.values() if name in (key.name, key.key_id)), None)
            if found is None:
                raise NotFound(f"there is no key named '{name}'; `agent keys list` has all")
            await self._store.remove(found.key_id)
            del self._keys[found.name]
            # Its rules may stay a while: nobody is taken for its holder any more, and with thousands of keys rules
            # are what takes long.
            self._publish_keys()
            self._stale = True
            self._tell()
        return found

    def certified(self) -> list[Certified]:
        """What is said of certificates, by URI; of "*" always."""
        return [said for _, said in sorted({ALL: UNSAID, **self._certified}.items())]

    async def grant(self, said: Certified) -> None:
        """What a certificate may do from now on: on disk, and published.

        Raises:
            DiskFull: there is no room.
        """
        async with self._changing:
            await self._store.save_certified(said)
            self._certified[said.uri] = said
            self._publish_rules()

    async def ungrant(self, uri: str) -> Certified:
        """Takes back what was said of a certificate; what it may do then.

        Raises:
            NotFound: nothing was said of it.
        """
        async with self._changing:
            if uri not in self._certified:
                raise NotFound(f"nothing is said of '{uri}'; `agent certs grants` has all of which something is")
            await self._store.remove_certified(uri)
            del self._certified[uri]
            self._publish_rules()
        return self.policy.by_certificate(uri)

    async def run(self) -> None:
        """Takes expired keys out of what Envoy looks through, until cancelled."""
        while True:
            await asyncio.sleep(_EXPIRY_TICK_S)
            now = time.time()
            if self._stale or any(not key.live(now) for key in self.policy.keys.values()):
                self._publish_changed()

    def _make_own(self, home: Home) -> None:
        own = self._keys.get(LOCAL)
        if own is not None and keys.belongs(home.token(), [own]):
            return
        secret, key = keys.mint(Wanted(LOCAL, EVERYTHING.role, (ALL,)), time.time())
        self._store.save_now(key)
        self._keys[LOCAL] = key
        write_atomically(home.token_file, secret.encode())

    def _changed(self, agent_id: str) -> None:
        if self._take(agent_id):
            self._publish_rules()

    def _take(self, agent_id: str) -> bool:
        """Takes over what an agent demands and may; says whether that is news."""
        agent = self._registry.get(agent_id)
        demands = self._demands.get(agent_id) if agent is None else agent.demands
        permitted = () if agent is None else agent.permissions.agents
        before = (self._demands.get(agent_id), self._permitted.get(agent_id), self._named())
        _enter(self._demands, agent_id, None if demands == Demands() else demands)
        _enter(self._permitted, agent_id, permitted or None)
        _enter(self._agents, agent_id, None if agent is None else agent_id)
        return before != (self._demands.get(agent_id), self._permitted.get(agent_id), self._named())

    def _named(self) -> tuple[str, ...]:
        """Nobody's but identity providers' tokens have scopes."""
        return tuple(islice(self._agents, MOST_NAMED)) if self.policy.identity else ()

    def _publish_changed(self) -> None:
        self._publish_keys()
        self._publish_rules()
        self._tell()

    def _tell(self) -> None:
        for listener in self.listeners:
            listener(self.every())

    def _publish_identity(self) -> None:
        self.policy = replace(self.policy, identity=tuple(self._identity.all()))
        # First whose tokens are taken no more, or are: a rule alone lets nobody pass.
        self._publish_keys()
        self._cache.put(resources.EXTENSION, tokens.identification(self.policy.identity))
        self._publish_rules()

    def _publish_keys(self) -> None:
        now = time.time()
        live = {key.key_id: key for key in self._keys.values() if key.live(now)}
        self.policy = replace(self.policy, keys=live, anonymous=self._anonymous)
        providers = tokens.jwt_providers(self.policy.identity)
        self._cache.put(resources.EXTENSION, filters.authentication(live.values(), providers))

    def _publish_rules(self) -> None:
        self._stale = False
        self.policy = replace(self.policy, demands=dict(self._demands), permitted=dict(self._permitted))
        self.policy = replace(self.policy, certified=dict(self._certified), named=self._named())
        identity = self.policy.identity
        access = rules.rules(self.policy, tokens.rule(identity, self.policy.demands, self.policy.named))
        http_access = rules.http_rules(self.policy, tokens.http_rule(identity), tokens.bearers(identity))
        self._cache.put(resources.EXTENSION, filters.extension(filters.ACCESS, access))
        self._cache.put(resources.EXTENSION, filters.extension(filters.HTTP_ACCESS, http_access))


def _enter(known: dict[str, Any], name: str, value: Any | None) -> None:
    if value is None:
        known.pop(name, None)
    else:
        known[name] = value
