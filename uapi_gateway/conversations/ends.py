"""How workers end, as far as that is heard: for those who handle again what one of them left."""

from weakref import WeakSet

from agentruntime._proto.uapi.v1 import event_log_pb2 as proto

from uapi_gateway.registry import Registry


class End:
    """Of one worker's process; what is known of it comes when it has ended, or never."""

    def __init__(self, worker_id: str) -> None:
        self.worker = proto.LostWorker(worker_id=worker_id)


class Ends:
    """Listens to a registry, which hears from the pool."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        # Those that somebody still holds.
        self._awaited: WeakSet[End] = WeakSet()
        # The failed ones of each agent: news of the agent tells of them again until they are started again.
        self._failed: dict[str, dict[str, tuple[str, str]]] = {}
        registry.listeners.append(self._changed)

    def of(self, worker_id: str) -> End:
        """The next end of the worker of that name."""
        end = End(worker_id)
        self._awaited.add(end)
        return end

    def _changed(self, agent_id: str) -> None:
        agent = self._registry.get(agent_id)
        endpoints = agent.endpoints if agent is not None else ()
        failed = {each.worker_id: (each.failure, each.traceback) for each in endpoints if each.failure}
        news = dict(failed.items() - self._failed.pop(agent_id, {}).items())
        if failed:
            self._failed[agent_id] = failed
        for end in [each for each in self._awaited if each.worker.worker_id in news]:
            failure, end.worker.traceback = news[end.worker.worker_id]
            end.worker.reason = f"worker {end.worker.worker_id} ended: {failure}"
            self._awaited.discard(end)
