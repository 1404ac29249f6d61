"""How much each caller may call: tells Envoy the limits of the keys and the gateway's own."""

from collections.abc import Iterable

from uapi_gateway.access.keys import Key
from uapi_gateway.xds import filters, limits, resources
from uapi_gateway.xds.cache import Cache


class Allowances:
    """Listens to the keys and writes to the cache.

    Args:
        cache: what Envoy is sent.
        rate_per_caller: calls per second of each principal whose key says nothing else; 0 is no limit.
    """

    def __init__(self, cache: Cache, rate_per_caller: float) -> None:
        self._cache = cache
        self._rate_per_caller = rate_per_caller

    def publish(self, keys: Iterable[Key]) -> None:
        """What is unchanged is not sent again, and its buckets stay as they are."""
        keys = list(keys)
        rates = {key.principal: key.rate_per_second for key in keys if key.rate_per_second}
        limited = {key.principal: key.max_concurrency for key in keys if key.max_concurrency}
        for message, name in (
            (limits.rates(rates, self._rate_per_caller), limits.RATES),
            (limits.concurrency(limited), limits.CONCURRENCY),
        ):
            self._cache.put(resources.EXTENSION, filters.extension(name, message))
