"""One Envoy's side of incremental xDS: what it has subscribed to, what it has, and what it must be sent.

The protocol: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol#incremental-xds
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2

from uapi_gateway.xds.cache import Cache
from uapi_gateway.xds.resources import CLUSTER, ENDPOINTS, EXTENSION, LISTENER, ROUTE, SECRET

# Made before broken: what is named is sent before what names it. Who may call an agent, before the way to it.
_ORDER = (SECRET, EXTENSION, CLUSTER, ENDPOINTS, LISTENER, ROUTE)
_WILDCARD = "*"


@dataclass
class Subscription:
    """What one Envoy wants of one kind of resource."""

    wildcard: bool = False
    names: set[str] = field(default_factory=set)
    # Versions that Envoy has.
    has: dict[str, str] = field(default_factory=dict)
    # Names to look at in the next flush.
    pending: set[str] = field(default_factory=set)
    # It waits for an answer, even an empty one.
    awaited: bool = False
    # The last response that it was sent, and the last that it took up, by their nonces.
    sent: str = ""
    taken: str = ""

    def wants(self, name: str) -> bool:
        return self.wildcard or name in self.names


class Session:
    """The state of one delta ADS stream; `wake` is called when `flush` has something to send."""

    def __init__(self, cache: Cache, wake: Callable[[], None]) -> None:
        self._cache = cache
        self._wake = wake
        self._subscriptions: dict[str, Subscription] = {}
        self._responses = 0
        # Names of the endpoints in responses that Envoy has not acknowledged yet, by nonce.
        self._unacknowledged: dict[str, list[str]] = {}
        # Endpoints that Envoy has taken up. A cluster is in use with its endpoints, not before.
        self.endpoints: set[str] = set()
        # Envoy did not accept a cluster, and will never ask for its endpoints.
        self._refused = False

    def in_force(self, kind: str) -> bool:
        """Envoy has taken up all resources of a kind as they are."""
        found = self._subscriptions.get(kind)
        return found is not None and not found.pending and found.sent != "" and found.sent == found.taken

    def settled(self, kind: str) -> bool:
        """It has taken up all that it wants of a kind, which may be nothing."""
        return kind not in self._subscriptions or self.in_force(kind)

    def touched(self, kind: str, name: str) -> None:
        """A resource has changed or is gone."""
        subscription = self._subscriptions.get(kind)
        if subscription is not None and subscription.wants(name):
            subscription.pending.add(name)
            self._wake()

    def request(self, request: Any) -> None:
        """Takes in a DeltaDiscoveryRequest: a subscription, or an acknowledgement."""
        kind = request.type_url
        acknowledged = self._unacknowledged.pop(request.response_nonce, [])
        if not request.HasField("error_detail"):
            self.endpoints.update(acknowledged)
            if request.response_nonce and kind in self._subscriptions:
                self._subscriptions[kind].taken = request.response_nonce
        asked = set(request.resource_names_subscribe)
        first = kind not in self._subscriptions
        self._refused |= kind == CLUSTER and request.HasField("error_detail")
        subscription = self._subscriptions.setdefault(kind, Subscription())
        if first:
            subscription.has.update(request.initial_resource_versions)
            subscription.awaited = True
            if kind == ENDPOINTS:
                self.endpoints.update(request.initial_resource_versions)
        for name in request.resource_names_unsubscribe:
            subscription.names.discard(name)
            subscription.has.pop(name, None)
            if kind == ENDPOINTS:
                self.endpoints.discard(name)
            if name == _WILDCARD:
                subscription.wildcard = False
        if _WILDCARD in asked or (first and not asked and kind in (LISTENER, CLUSTER)):
            asked.discard(_WILDCARD)
            subscription.wildcard = True
            subscription.pending.update(self._cache.names(kind), subscription.has)
        subscription.names |= asked
        subscription.pending |= asked
        if not first:
            # Subscribing again asks for the resource again, whatever was sent before.
            for name in asked:
                subscription.has.pop(name, None)
        if subscription.pending or subscription.awaited or self._refused:
            self._wake()

    def flush(self) -> Iterator[Any]:
        """The DeltaDiscoveryResponses that are due, in the order in which they must arrive."""
        removed: list[tuple[str, list[str]]] = []
        for kind in _ORDER:
            subscription = self._subscriptions.get(kind)
            if subscription is None or not (subscription.pending or subscription.awaited):
                continue
            if kind == ROUTE and self._warming():
                # The old routes may still lead to what is gone.
                for each, names in removed:
                    self._subscriptions[each].pending.update(names)
                removed.clear()
                continue
            gone = []
            changed = []
            for name in sorted(subscription.pending):
                resource = self._cache.get(kind, name)
                if resource is None:
                    gone.append(name)
                    subscription.has.pop(name, None)
                elif subscription.has.get(name) != resource.version:
                    changed.append(resource)
                    subscription.has[name] = resource.version
            subscription.pending.clear()
            if kind == CLUSTER:
                self._resend_endpoints([resource.name for resource in changed])
            if changed or (subscription.awaited and not gone):
                yield self._response(kind, changed, [])
            if gone:
                removed.append((kind, gone))
            subscription.awaited = False
        for kind, gone in reversed(removed):
            yield self._response(kind, [], gone)

    def _warming(self) -> bool:
        """Envoy has been sent a cluster and has not asked for its endpoints yet.

        A route to a cluster that still waits for its endpoints is a route to none.
        """
        if self._refused:
            return False
        clusters, endpoints = self._subscriptions.get(CLUSTER), self._subscriptions.get(ENDPOINTS)
        sent = clusters.has.keys() if clusters else ()
        asked = endpoints.names if endpoints else ()
        return any(name in self._cache.names(ENDPOINTS) and name not in asked for name in sent)

    def _resend_endpoints(self, clusters: list[str]) -> None:
        """A cluster that is sent again waits 15 s for its endpoints, unless they are sent again too."""
        endpoints = self._subscriptions.get(ENDPOINTS)
        if endpoints is None:
            return
        for name in clusters:
            if name in endpoints.names:
                endpoints.has.pop(name, None)
                endpoints.pending.add(name)

    def _response(self, kind: str, changed: list[Any], gone: list[str]) -> Any:
        self._responses += 1
        self._subscriptions[kind].sent = str(self._responses)
        if kind == ENDPOINTS:
            self._unacknowledged[str(self._responses)] = [resource.name for resource in changed]
            self.endpoints.difference_update(gone)
        return discovery_pb2.DeltaDiscoveryResponse(
            type_url=kind,
            resources=[
                discovery_pb2.Resource(name=resource.name, version=resource.version, resource=resource.body)
                for resource in changed
            ],
            removed_resources=gone,
            nonce=str(self._responses),
        )
