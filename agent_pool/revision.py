"""One version of an agent's desired state: everything that its workers are launched from."""

from dataclasses import dataclass, replace
from typing import Any

from agentruntime.launch import ConversationSpec
from agentruntime.manifest import AgentManifest
from agentruntime.names import ImageReference
from pydantic import BaseModel, ConfigDict, Field

from agent_pool.asked import (
    Asked,
    AskedHandling,
    AskedIsolation,
    AskedPolicies,
    Compression,
    LogFormat,
    Mode,
    Permissions,
    SecurityContext,
    over,
    spoken,
)
from agent_pool.cgroups.base import Limits
from agent_pool.drivers.base import Prepared, Revision
from agent_pool.images.catalog import OpenImage
from agent_pool.resources import Requested, Resources, resolve


@dataclass(frozen=True)
class Serving:
    """How a worker serves; the proto's Serving, with its defaults."""

    concurrency: int = 64
    queue: int = 1024
    compression: Compression = "none"
    optimize_throughput: bool = False
    debug: bool = False


@dataclass(frozen=True)
class Isolation:
    """Walls around a worker, beside its network; the proto's Isolation, with its defaults."""

    security_context: SecurityContext = "default"
    read_only_root: bool = True
    # 0 for none.
    network_limit_bps: int = 0


class Program(BaseModel):
    """What agent.yaml says of the agent's code."""

    model_config = ConfigDict(frozen=True)

    # Of its own agent.yaml; what it is called is the image's name, or what its operator says.
    name: str = ""
    entrypoint: str
    services: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    serving: Serving = Serving()
    default_timeout_s: float = 60.0
    idempotent: bool = True
    resources: Requested = Requested()
    policies: AskedPolicies = AskedPolicies()
    isolation: AskedIsolation = AskedIsolation()
    log_format: LogFormat = "text"
    # What a container image of it is made from; "" for the pool's default.
    base_image: str = ""
    permissions: Permissions = Permissions()
    handling: AskedHandling = AskedHandling()

    @classmethod
    def of(cls, manifest: AgentManifest) -> "Program":
        return cls(
            name=manifest.name,
            entrypoint=manifest.entrypoint,
            services=tuple(manifest.services),
            env=manifest.env,
            serving=Serving(
                manifest.concurrency,
                manifest.queue,
                manifest.compression or "none",
                manifest.optimize_throughput or False,
            ),
            default_timeout_s=manifest.timeout_s,
            idempotent=manifest.idempotent,
            resources=Requested.of_manifest(manifest.resources),
            policies=AskedPolicies.of_manifest(manifest),
            isolation=AskedIsolation.of_manifest(manifest.isolation),
            log_format=manifest.logging.format or "text",
            base_image=manifest.base_image or "",
            permissions=Permissions.of_manifest(manifest.permissions),
            handling=AskedHandling.of_manifest(manifest.conversations),
        )


class Spec(BaseModel):
    """A revision. Changed copies of it are made with `model_copy`."""

    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    agent: str
    number: int
    agent_index: int
    # "name:tag"
    image: str
    image_digest: str
    bundle: str
    program: Program
    asked: Asked
    resources: Resources
    # Since the epoch.
    created_at_s: float = 0.0
    # "run", "update", "canary", "rollback to 3", "scale".
    cause: str = "run"
    # Why it was given up, if it was.
    failure: str = ""
    # The revision whose template makes its workers: an earlier one, if only caps changed since.
    loaded_as: int = 0
    prepared: Prepared = Prepared()
    # What was asked for may go unenforced; whoever asked last said so.
    allow_unenforced: bool = False
    # Of limits that are not enforced; those of the sandbox are in `prepared`.
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, opened: OpenImage, asked: Asked, *, agent: str, agent_index: int, **fields: Any) -> "Spec":
        """Of an image and what was asked; `fields` are those that have defaults, and the number.

        Raises:
            InvalidArgument: resources that no worker can live with.
        """
        program = Program.of(opened.manifest)
        return cls(
            agent=agent,
            agent_index=agent_index,
            image=opened.image.reference,
            image_digest=opened.image.digest,
            bundle=str(opened.bundle),
            program=program,
            asked=asked,
            resources=resolve(asked.resources, program.resources),
            **fields,
        )

    @property
    def key(self) -> str:
        """Of its template: "my-agent@3"."""
        return f"{self.agent}@{self.loaded_as or self.number}"

    @property
    def serving(self) -> Serving:
        """As it is in force."""
        return replace(self.program.serving, **spoken(self.asked.serving))

    @property
    def network(self) -> str:
        return self.asked.network or "isolated"

    @property
    def log_level(self) -> str:
        return self.asked.log_level or "INFO"

    @property
    def mode(self) -> Mode:
        return "container" if self.asked.mode == "container" else "native"

    @property
    def isolation(self) -> Isolation:
        """As it is in force."""
        return Isolation(**spoken(over(self.asked.isolation, self.program.isolation)))

    @property
    def log_format(self) -> LogFormat:
        return "json" if (self.asked.log_format or self.program.log_format) == "json" else "text"

    @property
    def permissions(self) -> Permissions:
        """Of agent.yaml, and what an operator added."""
        return self.program.permissions.and_also(self.asked.permissions)

    @property
    def conversations(self) -> ConversationSpec:
        """How its messages are handled, as it is in force."""
        return ConversationSpec(**spoken(over(self.asked.handling, self.program.handling)))

    @property
    def env(self) -> dict[str, str]:
        return {**self.program.env, **self.asked.env}

    @property
    def limits(self) -> Limits:
        """The kernel's caps of a worker."""
        return Limits(
            memory_bytes=self.resources.memory_limit_bytes,
            cpu_millis=self.resources.cpu_limit_millis,
            pids=self.resources.pids_limit,
            # What has no network but its own loopback has none to be limited.
            network_bps=self.isolation.network_limit_bps or None if self.network == "host" else None,
        )

    @property
    def named_otherwise(self) -> str:
        """That it is called after its image, though its author gave it another name; "" if not."""
        name = self.program.name
        if name in ("", self.agent) or self.agent != ImageReference.parse(self.image).agent:
            return ""
        return f"its agent.yaml calls it '{name}'; it runs as '{self.agent}', after its image (--name says otherwise)"

    @property
    def without_effect(self) -> str:
        """What of it was asked for to no avail, and why; "" for nothing."""
        if self.network == "host":
            unneeded = "egress has no effect: with the host's network, workers reach what the platform reaches"
            return unneeded if self.permissions.egress else ""
        if not self.asked.isolation.network_limit_bps:
            return ""
        return "the network limit has no effect: the network is isolated; --network host has one to be limited"

    def wider_than(self, other: "Spec") -> list[str]:
        """The settings by which it has what another has not, and which only an operator of all agents may make."""
        given, before = self.asked.permissions, other.asked.permissions
        wider = [name for name, names in spoken(given).items() if set(names) - set(getattr(before, name) or ())]
        if self.network == "host" and other.network != "host":
            wider.append("network")
        if self.asked.venv not in ("", other.asked.venv):
            wider.append("venv")
        if self.allow_unenforced and not other.allow_unenforced:
            wider.append("allow_unenforced")
        return wider

    def same_as(self, other: "Spec") -> bool:
        """Whether workers of both are launched in the same way, from the same image."""
        return self._launched() == other._launched()

    def same_but_for_caps(self, other: "Spec") -> bool:
        """Whether a worker of one becomes one of the other by moving its caps alone."""
        if self.resources.gpus != other.resources.gpus:
            return False
        return other.model_copy(update={"resources": self.resources}).same_as(self)

    def _launched(self) -> tuple[object, ...]:
        resources = replace(self.resources, asked=frozenset())
        return (replace(self.driver_revision(0.0), key="", number=0, may_be_root=False), resources, self.image_digest)

    def driver_revision(self, start_timeout_s: float) -> Revision:
        """As drivers see it."""
        serving = self.serving
        return Revision(
            key=self.key,
            agent=self.agent,
            number=self.number,
            image_digest=self.image_digest,
            bundle=self.bundle,
            entrypoint=self.program.entrypoint,
            services=self.program.services,
            env=self.env,
            log_level=self.log_level,
            venv=self.asked.venv,
            host_network=self.network == "host",
            agent_index=self.agent_index,
            limits=self.limits,
            wants_gpus=self.resources.gpus > 0,
            concurrency=serving.concurrency,
            queue=serving.queue,
            compression=serving.compression,
            optimize_throughput=serving.optimize_throughput,
            debug=serving.debug,
            default_timeout_s=self.program.default_timeout_s,
            start_timeout_s=start_timeout_s,
            mode=self.mode,
            restricted=self.isolation.security_context == "restricted",
            read_only_root=self.isolation.read_only_root,
            log_format=self.log_format,
            base_image=self.program.base_image,
            may_be_root=self.allow_unenforced,
            egress=self.permissions.egress,
            secrets=self.permissions.secrets,
            conversations=self.conversations,
        )
