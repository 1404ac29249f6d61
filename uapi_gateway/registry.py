"""The directory of agents: the pool's and those that registered themselves. Plain memory; time is an argument."""

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool
from agentruntime._proto.uapi.v1 import agent_registry_pb2 as proto
from agentruntime.errors import AgentNotFound, AlreadyExists, LeaseNotFound

# Calls that may wait for a worker of an agent that does not say (agent_pool.proto, Serving.queue).
QUEUE = 1024


@dataclass(frozen=True)
class Endpoint:
    """One place where an agent serves."""

    # "host:port" or "unix:/path", as it was given; empty for a worker that does not exist yet.
    address: str
    ready: bool
    worker_id: str = ""
    # Why it is not ready, in a sentence.
    reason: str = ""
    # The address with its host looked up; empty where none is needed.
    resolved: str = ""
    # Health checks that have failed in a row since the agent registered.
    failures: int = 0
    # From 1 to 100: the share of calls that it should get beside the others, where they are spread by health.
    weight: int = 100
    # Of the agent's desired state; a canary's is another than the agent's.
    revision: int = 0
    # Of the worker's process; 0 while it is not known.
    pid: int = 0
    # Why it ended by itself, until it is started again; and where its code raised, if it did.
    failure: str = ""
    traceback: str = ""

    @property
    def dialled(self) -> str:
        return self.resolved or self.address


@dataclass(frozen=True)
class Lease:
    """How long a registered agent stays without a word from it. Times in seconds since the epoch."""

    lease_id: str
    ttl_s: float
    expires_at: float

    def renewed(self, now: float) -> "Lease":
        return replace(self, expires_at=now + self.ttl_s)


@dataclass(frozen=True)
class Traffic:
    """How an agent's calls are spread over its workers."""

    load_balancer: int = pool.LOAD_BALANCER_LEAST_REQUEST
    # A worker that fails so many calls in a row gets none for some seconds; 0 is no circuit breaker.
    failure_threshold: int = 0


@dataclass(frozen=True)
class CachePolicy:
    """How much of an agent's answers is kept, and for how long."""

    max_bytes: int
    ttl_s: float = 300.0


@dataclass(frozen=True)
class Keeping:
    """How long an agent's conversations are kept, and how much of each; 0 is no bound."""

    ttl_s: float = 0.0
    max_events: int = 0
    max_bytes: int = 0


@dataclass(frozen=True)
class Permissions:
    """What an agent may use; "*" for all. The proto's Permissions."""

    agents: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    topics: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    egress: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    # Those of `egress` that an operator named: they may be on this machine, too.
    operators_egress: tuple[str, ...] = ()


@dataclass(frozen=True)
class Demands:
    """What an agent demands of its callers. The proto's Access."""

    tls: bool = False
    # API keys, by name or id.
    keys: tuple[str, ...] = ()
    oauth2_client_id: str = ""


@dataclass(frozen=True)
class Agent:
    """An agent that calls can be routed to."""

    agent_id: str
    services: tuple[str, ...]
    endpoints: tuple[Endpoint, ...]
    capabilities: tuple[str, ...] = ()
    image: str = ""
    image_digest: str = ""
    stopped: bool = False
    # It has no process; the next call wakes it.
    asleep: bool = False
    # Workers that are wanted; while it sleeps, as many as it had or begins with.
    replicas: int = 1
    # The current one of its desired state.
    revision: int = 0
    # What goes on or went wrong last with the agent as a whole, in a sentence.
    status: str = ""
    traffic: Traffic = Traffic()
    # None: its answers are not kept.
    cache: CachePolicy | None = None
    # Calls that may wait for a worker.
    queue: int = QUEUE
    # False: no call is repeated once a worker may have seen it.
    idempotent: bool = True
    # A serialized FileDescriptorSet of the services.
    descriptors: bytes = b""
    health_check: str = ""
    # None for the pool's own.
    lease: Lease | None = None
    permissions: Permissions = Permissions()
    demands: Demands = Demands()
    keeping: Keeping = Keeping()

    @property
    def ready(self) -> bool:
        return any(endpoint.ready for endpoint in self.endpoints)

    @property
    def reason(self) -> str:
        """Why the agent is not ready, in a sentence; empty if it is."""
        if self.ready:
            return ""
        if self.stopped:
            return "stopped by an operator"
        if self.asleep:
            return "asleep; the next call wakes it" + (f" ({self.status})" if self.status else "")
        if self.lease is None and self.replicas == 0:
            return "it has 0 replicas"
        return next((e.reason for e in self.endpoints if e.reason), "no worker is ready yet")

    def info(self) -> proto.AgentInfo:
        """What the registry's callers see."""
        state = proto.AGENT_STATE_READY if self.ready else proto.AGENT_STATE_UNAVAILABLE
        if self.stopped:
            state = proto.AGENT_STATE_STOPPED
        elif self.asleep:
            state = proto.AGENT_STATE_ASLEEP
        info = proto.AgentInfo(
            agent_id=self.agent_id,
            source=proto.AGENT_SOURCE_POOL if self.lease is None else proto.AGENT_SOURCE_REGISTERED,
            state=state,
            services=self.services,
            capabilities=self.capabilities,
            endpoints=[
                proto.AgentEndpoint(address=e.address, ready=e.ready, worker_id=e.worker_id)
                for e in self.endpoints
                if e.address
            ],
            image=self.image,
            reason=self.reason,
            idempotent=self.idempotent,
        )
        if self.lease is not None:
            info.lease_expires_at.FromMilliseconds(round(self.lease.expires_at * 1000))
        return info


@dataclass(frozen=True)
class Target:
    """What a name in `x-uapi-agent` stands for: an agent, or one worker of it."""

    name: str
    agent: Agent
    endpoints: tuple[Endpoint, ...]

    @property
    def ready(self) -> tuple[Endpoint, ...]:
        return tuple(endpoint for endpoint in self.endpoints if endpoint.ready)


@dataclass
class Registry:
    """All agents by id. After every change each of `listeners` is called with the agent's id."""

    listeners: list[Callable[[str], None]] = field(default_factory=list)
    _pool: dict[str, Agent] = field(default_factory=dict)
    _registered: dict[str, Agent] = field(default_factory=dict)
    _workers: dict[str, str] = field(default_factory=dict)  # worker_id -> agent_id

    def get(self, agent_id: str) -> Agent | None:
        """The pool's agent of that id, else the registered one."""
        return self._pool.get(agent_id) or self._registered.get(agent_id)

    def agents(self) -> list[Agent]:
        """All agents, by id."""
        return [found for name in sorted(self._pool.keys() | self._registered) if (found := self.get(name))]

    def registered(self) -> list[Agent]:
        """The agents that registered themselves, by id."""
        return [self._registered[name] for name in sorted(self._registered)]

    def find(self, name: str) -> Target | None:
        """What a name stands for. An exact agent id wins over the name of a worker."""
        if agent := self.get(name):
            return Target(name, agent, agent.endpoints)
        owner = self._pool.get(self._workers.get(name, ""))
        if owner is None:
            return None
        return Target(name, owner, tuple(e for e in owner.endpoints if e.worker_id == name))

    def owner(self, worker_id: str) -> str:
        """The agent whose worker that is; "" if it is nobody's."""
        return self._workers.get(worker_id, "")

    def serving(self, service: str) -> list[Agent]:
        """The agents that serve a service, by id; stopped ones only where there is no other."""
        every = [agent for agent in self.agents() if service in agent.services]
        return [agent for agent in every if not agent.stopped] or every

    def put_pool_agent(self, agent: Agent) -> None:
        """Enters an agent as the pool has it now."""
        before = self._pool.get(agent.agent_id)
        if before == agent:
            return
        self._pool[agent.agent_id] = agent
        self._index_workers()
        self._changed(agent.agent_id)

    def remove_pool_agent(self, agent_id: str) -> None:
        """Takes an agent of the pool out; one that is not there counts as taken out."""
        if self._pool.pop(agent_id, None) is not None:
            self._index_workers()
            self._changed(agent_id)

    def keep_pool_agents(self, agent_ids: Iterable[str]) -> list[str]:
        """Takes out every agent of the pool but these, and returns the ids of those taken out."""
        gone = sorted(self._pool.keys() - set(agent_ids))
        for agent_id in gone:
            self.remove_pool_agent(agent_id)
        return gone

    def register(self, agent: Agent, ttl_s: float, now: float) -> Agent:
        """Enters an agent from outside with a new lease, or replaces what it said before.

        Raises:
            AlreadyExists: the pool runs an agent or a worker of that name.
        """
        name = agent.agent_id
        if name in self._pool or name in self._workers:
            raise AlreadyExists(f"the pool runs an agent or worker named '{name}'; register under another agent_id")
        before = self._registered.get(name)
        lease_id = before.lease.lease_id if before and before.lease else secrets.token_urlsafe(16)
        entered = replace(agent, lease=Lease(lease_id, ttl_s, now + ttl_s))
        self._registered[name] = entered
        self._changed(name)
        return entered

    def restore(self, agent: Agent, now: float) -> None:
        """Enters a registered agent that an earlier gateway knew, with a fresh lease: it could not renew it."""
        assert agent.lease is not None
        self._registered[agent.agent_id] = replace(agent, lease=agent.lease.renewed(now))
        self._changed(agent.agent_id)

    def keep_alive(self, lease_id: str, now: float) -> Lease:
        """Renews a lease.

        Raises:
            LeaseNotFound: it is unknown or has run out.
        """
        for name, agent in self._registered.items():
            if agent.lease and agent.lease.lease_id == lease_id and agent.lease.expires_at > now:
                renewed = agent.lease.renewed(now)
                self._registered[name] = replace(agent, lease=renewed)
                return renewed
        raise LeaseNotFound("the lease is unknown or has run out; register the agent again")

    def deregister(self, agent_id: str) -> bool:
        """Takes out a registered agent; says whether it was there."""
        if self._registered.pop(agent_id, None) is None:
            return False
        self._changed(agent_id)
        return True

    def expire(self, now: float) -> list[str]:
        """Takes out the registered agents whose lease has run out, and returns their ids."""
        gone = [name for name, a in self._registered.items() if a.lease and a.lease.expires_at <= now]
        for name in gone:
            self.deregister(name)
        return gone

    def set_endpoint(self, agent_id: str, checked: Endpoint, found: Endpoint) -> None:
        """Replaces the endpoint of a registered agent by what a health check of it has found.

        An agent that has gone or registered anew meanwhile keeps what it said: the finding is not about that.
        """
        agent = self._registered.get(agent_id)
        if agent is None or agent.endpoints != (checked,) or found == checked:
            return
        self._registered[agent_id] = replace(agent, endpoints=(found,))
        if replace(found, failures=checked.failures) != checked:
            self._changed(agent_id)

    def require(self, name: str) -> Target:
        """What a name stands for.

        Raises:
            AgentNotFound: nothing.
        """
        target = self.find(name)
        if target is None:
            raise AgentNotFound(name)
        return target

    def _index_workers(self) -> None:
        self._workers = {
            endpoint.worker_id: agent.agent_id
            for agent in self._pool.values()
            for endpoint in agent.endpoints
            if endpoint.worker_id
        }

    def worker_ids(self) -> dict[str, str]:
        """The agent of each worker."""
        return dict(self._workers)

    def _changed(self, agent_id: str) -> None:
        for listener in self.listeners:
            listener(agent_id)
