"""What is known of workers that have ended: for those who handle again what one of them left."""

from agentruntime._proto.uapi.v1 import event_log_pb2 as proto

from uapi_gateway.registry import Registry

# The latest; each is as long as a traceback.
_MOST = 256


class Ends:
    """Listens to a registry, which hears from the pool."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._known: dict[str, proto.LostWorker] = {}
        registry.listeners.append(self._changed)

    def of(self, worker_id: str) -> proto.LostWorker:
        """What is known of a worker's last end; nothing but its name, if nothing is."""
        return self._known.get(worker_id) or proto.LostWorker(worker_id=worker_id)

    def _changed(self, agent_id: str) -> None:
        agent = self._registry.get(agent_id)
        for endpoint in agent.endpoints if agent is not None else ():
            if endpoint.failure:
                self._known.pop(endpoint.worker_id, None)
                self._known[endpoint.worker_id] = proto.LostWorker(
                    worker_id=endpoint.worker_id,
                    reason=f"worker {endpoint.worker_id} ended: {endpoint.failure}",
                    traceback=endpoint.traceback,
                )
                if len(self._known) > _MOST:
                    del self._known[next(iter(self._known))]
