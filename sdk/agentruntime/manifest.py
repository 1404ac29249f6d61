"""`agent.yaml`: what an agent's author says about the agent."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from agentruntime import documents, errors, names
from agentruntime.sections import (
    AccessSection,
    CacheSection,
    Compression,
    ConversationsSection,
    Duration,
    HealthFailureAction,
    IsolationSection,
    LoggingSection,
    PermissionsSection,
    ResourcesSection,
    RestartPolicy,
    ScalingSection,
    Section,
    TrafficSection,
)

FILE_NAME = "agent.yaml"


class PythonSection(Section):
    """What the agent's code needs beside the platform's SDK."""

    # As in a requirements.txt, one each.
    requirements: list[str] = Field(default_factory=list)
    # Of the packages beside which the platform is installed: a native worker has them there, a container image gets
    # them in the same versions.
    platform_packages: list[str] = Field(default_factory=list)


class HealthSection(Section):
    """When a worker counts as ready, and as unhealthy. Durations in seconds."""

    interval_s: Duration = Field(default=10.0, alias="interval", gt=0)
    timeout_s: Duration = Field(default=5.0, alias="timeout", gt=0)
    retries: int = Field(3, ge=1)
    start_timeout_s: Duration = Field(default=60.0, alias="start_timeout", gt=0)
    failure_action: HealthFailureAction = "restart"


def _name(given: Any) -> str:
    # YAML makes a number of 7. What else there may be is not made a text of: it may be large.
    if not isinstance(given, str | int):
        raise ValueError("must be text")
    return names.check_agent_name(str(given))


class AgentManifest(Section):
    """All of `agent.yaml`."""

    name: Annotated[str, BeforeValidator(_name)]
    version: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")
    # "module:Class"; the module is found in the project's directory.
    entrypoint: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    # Full names of the gRPC services; empty for whatever the class implements.
    services: list[str] = Field(default_factory=list)
    python: PythonSection = PythonSection()
    resources: ResourcesSection = ResourcesSection()
    health: HealthSection = HealthSection()
    # Calls that one worker handles at a time.
    concurrency: int = Field(64, ge=1, le=10_000)
    # Calls that wait beyond those; more are refused.
    queue: int = Field(1024, ge=0, le=100_000)
    compression: Compression | None = None
    optimize_throughput: bool | None = None
    restart_policy: RestartPolicy | None = None
    scaling: ScalingSection = ScalingSection()
    traffic: TrafficSection = TrafficSection()
    cache: CacheSection = CacheSection()
    conversations: ConversationsSection = ConversationsSection()
    isolation: IsolationSection = IsolationSection()
    logging: LoggingSection = LoggingSection()
    permissions: PermissionsSection = PermissionsSection()
    access: AccessSection = AccessSection()
    # What a container image of it is made from, as in a Dockerfile's FROM.
    base_image: str | None = None
    # Limit of a unary call that comes without a deadline, in seconds.
    timeout_s: Duration = Field(default=60.0, alias="timeout", gt=0)
    # Whether calls that the protos declare idempotent may be repeated on another worker.
    idempotent: bool = True
    env: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "AgentManifest":
        """Reads the text of an `agent.yaml`.

        Raises:
            InvalidManifest: it is not YAML, or a field is missing, unknown or of the wrong type; names each.
        """
        try:
            data = documents.load(text)
        except ValueError as error:
            raise errors.InvalidManifest(f"{FILE_NAME} {error}") from None
        if not isinstance(data, dict):
            raise errors.InvalidManifest(f"{FILE_NAME} must be a mapping that begins with `name:`")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            problems = "; ".join(_problem(item) for item in error.errors(include_url=False))
            raise errors.InvalidManifest(f"{FILE_NAME}: {problems}") from None
        except errors.InvalidArgument as error:
            raise errors.InvalidManifest(f"{FILE_NAME}: name: {error.message}") from None

    @classmethod
    def load(cls, project: Path) -> "AgentManifest":
        """Reads `agent.yaml` of a project directory.

        Raises:
            InvalidManifest: there is none, or it is not valid.
        """
        try:
            return cls.parse(documents.read(project / FILE_NAME))
        except FileNotFoundError:
            raise errors.InvalidManifest(f"{project} has no {FILE_NAME}; `agent init` makes one") from None
        except ValueError as error:
            raise errors.InvalidManifest(f"{FILE_NAME} {error}") from None


# What pydantic's own words leave unsaid.
_HINTS = {
    "extra_forbidden": "is not a setting",
    "missing": "is missing",
    "string_type": "must be text; write it in quotes",
}
_FORMS = {
    "entrypoint": "must be module:Class, like agent:MyAgent",
    "version": "must be like an image's tag: letters, digits, '_', '.' and '-', in quotes if it is a number",
}


def _problem(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if where in _FORMS and item["type"] != "missing":
        return f"{where}: {_FORMS[where]}"
    message = _HINTS.get(item["type"]) or item["msg"].removeprefix("Value error, ")
    return f"{where}: {message[0].lower() + message[1:]}"
