"""Which workers Envoy has taken out of its rotation, as its outlier detection says."""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agentruntime import log

from uapi_gateway.registry import Registry, Target
from uapi_gateway.xds.clusters import LONGEST_EJECTION_S, named

_log = log.get("uapi_gateway.ejections")
# Of envoy.data.cluster.v3.OutlierEjectionType: the worker failed calls, so its circuit breaker opened. The others say
# that a connection to it failed.
_CIRCUIT_BREAKER = "CONSECUTIVE_5XX"
# An ejection that Envoy never takes back is forgotten after so long; it looks each second.
_FORGOTTEN_S = LONGEST_EJECTION_S + 2


@dataclass(frozen=True)
class _Ejection:
    at_s: float
    circuit_breaker: bool


class Ejections:
    """Keeps what is ejected now, and which workers were since somebody asked; at each, `listeners` are called."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        # By the agent's or worker's name and the address within.
        self._out: dict[tuple[str, str], _Ejection] = {}
        self._workers: set[str] = set()
        self.listeners: list[Callable[[], None]] = []
        registry.listeners.append(self._changed)

    def take(self, line: str, now: float) -> None:
        """Takes in one event, a line of JSON (envoy.data.cluster.v3.OutlierDetectionEvent).

        Raises:
            ValueError: it is not one.
        """
        event = json.loads(line)
        name, address = named(str(event["cluster_name"])), str(event["upstream_url"])
        if not name:
            return
        if event.get("action") == "UNEJECT":
            self._out.pop((name, address), None)
            return
        if not event.get("enforced"):
            return
        self._out = {key: out for key, out in self._out.items() if now - out.at_s < _FORGOTTEN_S}
        self._out[name, address] = _Ejection(now, event.get("type") == _CIRCUIT_BREAKER)
        target = self._registry.find(name)
        for endpoint in target.endpoints if target else ():
            if endpoint.worker_id and _plain(endpoint.dialled) == address:
                self._workers.add(endpoint.worker_id)
                for listener in self.listeners:
                    listener()

    def workers(self) -> list[str]:
        """The workers that were ejected since this was last asked."""
        workers, self._workers = self._workers, set()
        return sorted(workers)

    def take_back(self, workers: list[str]) -> None:
        """A report that did not arrive: who was in it is to be named again."""
        self._workers.update(workers)

    def envoy_left(self) -> None:
        """Envoy has ended; of what it took out the next one knows nothing."""
        self._out.clear()

    def circuit_open(self, target: Target, now: float) -> bool:
        """The circuit breaker has taken out every worker that is ready."""
        ready = target.ready
        return bool(ready) and all(self._tripped(target.name, _plain(each.dialled), now) for each in ready)

    def _tripped(self, name: str, address: str, now: float) -> bool:
        found = self._out.get((name, address))
        return found is not None and found.circuit_breaker and now - found.at_s < _FORGOTTEN_S

    def _changed(self, agent_id: str) -> None:
        """A worker that leaves Envoy's endpoints comes back as another host, of which nothing is known."""
        agent = self._registry.get(agent_id)
        present = {_plain(each.dialled) for each in agent.endpoints if each.ready} if agent else set()
        names = {agent_id, *(each.worker_id for each in agent.endpoints)} if agent else {agent_id}
        for name, address in [key for key in self._out if key[0] in names and key[1] not in present]:
            del self._out[name, address]


def _plain(address: str) -> str:
    """An address as Envoy writes it."""
    return address.removeprefix("unix:")


@contextlib.contextmanager
def hearing(ejections: Ejections, path: Path) -> Iterator[None]:
    """Hears what Envoy writes into a named pipe, for as long as the block lasts; Envoy must be started within.

    A pipe, unlike a file, never grows, and says at once when there is something to read. While no gateway hears, what
    Envoy writes is lost.
    """
    if not path.is_fifo():
        path.unlink(missing_ok=True)
        os.mkfifo(path, 0o600)
    # For writing too: so it is never at its end, and Envoy need not wait for a reader to open it.
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    loop = asyncio.get_running_loop()
    rest = b""

    def read() -> None:
        nonlocal rest
        *lines, rest = (rest + os.read(descriptor, 2**16)).split(b"\n")
        for line in filter(None, lines):
            try:
                ejections.take(line.decode(), time.monotonic())
            except (ValueError, KeyError) as error:
                _log.error("an ejection cannot be read", line=line.decode("utf-8", "replace"), error=str(error))

    loop.add_reader(descriptor, read)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
