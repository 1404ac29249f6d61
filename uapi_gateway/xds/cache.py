"""The resources as they are now, and who must hear of a change."""

from collections.abc import Iterable, Iterator
from typing import Protocol

from uapi_gateway.xds.resources import Resource


class Listener(Protocol):
    """Hears of every resource that changed or is gone."""

    def touched(self, kind: str, name: str) -> None: ...


class Cache:
    """All resources by kind and name."""

    def __init__(self) -> None:
        self._resources: dict[str, dict[str, Resource]] = {}
        self._listeners: set[Listener] = set()

    def put(self, kind: str, resource: Resource) -> None:
        """Enters a resource; one of equal content changes nothing."""
        known = self._resources.setdefault(kind, {})
        before = known.get(resource.name)
        if before is None or before.version != resource.version:
            known[resource.name] = resource
            self._tell(kind, resource.name)

    def remove(self, kind: str, name: str) -> None:
        """Takes a resource out; one that is not there counts as taken out."""
        if self._resources.get(kind, {}).pop(name, None) is not None:
            self._tell(kind, name)

    def get(self, kind: str, name: str) -> Resource | None:
        return self._resources.get(kind, {}).get(name)

    def names(self, kind: str) -> Iterable[str]:
        return self._resources.get(kind, {}).keys()

    def listen(self, listener: Listener) -> None:
        self._listeners.add(listener)

    def unlisten(self, listener: Listener) -> None:
        self._listeners.discard(listener)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter([(kind, name) for kind, known in self._resources.items() for name in known])

    def _tell(self, kind: str, name: str) -> None:
        for listener in list(self._listeners):
            listener.touched(kind, name)
