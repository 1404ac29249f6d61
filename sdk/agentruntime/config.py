"""`RuntimeConfig`: what a user set, from `runtime-config.yaml`, the environment and flags, later ones first.

Whole precedence: built-in < agent.yaml < runtime-config.yaml < environment < flags. The pool adds the first two, so
here whatever nobody wrote stays None and is not sent.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError

from agentruntime import documents, errors
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
    RuntimeMode,
    ScalingSection,
    Section,
    TrafficSection,
)

FILE_NAME = "runtime-config.yaml"
DEFAULT_TIMEOUT_S = 30.0
# What a file that merely lies in the working directory, perhaps a stranger's, must not decide.
_BY_NAME_ONLY = {"uapi": "where credentials go", "permissions": "what agents may use"}

# Where each variable of the environment belongs, as a path of keys.
ENVIRONMENT: dict[str, tuple[str, ...]] = {
    "AGENT_RUNTIME_MODE": ("mode",),
    "AGENT_MEMORY_LIMIT": ("resources", "memory_limit"),
    "AGENT_CPU_LIMIT": ("resources", "cpu_limit"),
    "AGENT_GPU_ENABLED": ("resources", "gpu"),
    "AGENT_LOG_LEVEL": ("log_level",),
    "UAPI_ENDPOINT": ("uapi", "endpoint"),
    "UAPI_AUTH_TOKEN": ("uapi", "auth_token"),
    "UAPI_TIMEOUT": ("uapi", "timeout"),
    "UAPI_TLS_CA": ("uapi", "tls_ca"),
    "UAPI_TLS_CERT": ("uapi", "tls_cert"),
    "UAPI_TLS_KEY": ("uapi", "tls_key"),
}
_BOOLEANS = {"true": 1, "1": 1, "yes": 1, "on": 1, "false": 0, "0": 0, "no": 0, "off": 0, "": 0}


class HealthCheckSection(Section):
    """How often a worker is asked, how long it may take, and when it counts as unhealthy. Durations in seconds."""

    interval_s: Duration | None = Field(default=None, alias="interval", gt=0)
    timeout_s: Duration | None = Field(default=None, alias="timeout", gt=0)
    retries: int | None = Field(default=None, ge=1)
    start_timeout_s: Duration | None = Field(default=None, alias="start_timeout", gt=0)
    failure_action: HealthFailureAction | None = None


class UapiSection(Section):
    """How callers reach the gateway."""

    # "host:port", "unix:/path", "http://host:port" or "https://host:port"; None finds the local platform.
    endpoint: str | None = None
    auth_token: str | None = Field(default=None, repr=False)
    timeout_s: Duration = Field(default=DEFAULT_TIMEOUT_S, alias="timeout", gt=0)
    # Files in PEM: whose certificates are trusted, and the caller's own certificate with its key.
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None


class RuntimeConfig(Section):
    """Settings of a caller and of `agent run`. None means that nobody set it.

    `app_name`, `app_version`, `app_environment` and `custom_config` belong to the application; the platform carries
    them and does not read them.
    """

    mode: RuntimeMode | None = None
    resources: ResourcesSection = ResourcesSection()
    health_check: HealthCheckSection = HealthCheckSection()
    restart_policy: RestartPolicy | None = None
    scaling: ScalingSection = ScalingSection()
    traffic: TrafficSection = TrafficSection()
    cache: CacheSection = CacheSection()
    conversations: ConversationsSection = ConversationsSection()
    isolation: IsolationSection = IsolationSection()
    logging: LoggingSection = LoggingSection()
    permissions: PermissionsSection = PermissionsSection()
    access: AccessSection = AccessSection()
    # Calls that one worker handles at a time, and that wait beyond those.
    concurrency: int | None = Field(default=None, ge=1, le=10_000)
    queue: int | None = Field(default=None, ge=0, le=100_000)
    compression: Compression | None = None
    optimize_throughput: bool | None = None
    debug: bool | None = None
    replicas: int | None = Field(default=None, ge=0, le=10_000)
    network: Annotated[
        Literal["isolated", "host"] | None, BeforeValidator(lambda given: "isolated" if given == "none" else given)
    ] = None
    venv: str | None = None
    env: dict[str, str] = Field(default_factory=dict)
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR"] | None,
        BeforeValidator(lambda given: given.upper() if isinstance(given, str) else given),
    ] = None
    allow_unenforced: bool | None = None
    uapi: UapiSection = UapiSection()
    app_name: str | None = None
    app_version: str | None = None
    app_environment: str | None = None
    custom_config: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str = "configuration") -> Self:
        """Reads settings by their names, or under `runtime:` as `runtime-config.yaml` has them.

        Raises:
            InvalidArgument: a key is unknown or a value of the wrong type; names `source` and each of them.
        """
        return cls._validated(_flat(data, source), lambda path: f"{source}: {_dotted(path, data)}")

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """Reads a JSON file.

        Raises:
            InvalidArgument: there is no such file, it is not JSON, or `from_dict` would refuse it.
        """
        text = _read(Path(path))
        try:
            return cls.from_dict(_mapping(json.loads(text), str(path)), source=str(path))
        # Beside its own error, of numbers with too many digits.
        except ValueError as error:
            raise errors.InvalidArgument(f"{path} is not JSON: {error}") from None
        except RecursionError:
            raise errors.InvalidArgument(f"{path} is nested too deeply") from None

    @classmethod
    def from_flags(cls, flags: Mapping[str, tuple[str, Any]]) -> Self:
        """Reads flags only, given as to `load`.

        Raises:
            InvalidArgument: a flag's value cannot be read.
        """
        return cls._from_layer(_paths(flags))

    @classmethod
    def from_env(
        cls, environ: Mapping[str, str] | None = None, *, flags: Mapping[str, tuple[str, Any]] | None = None
    ) -> Self:
        """Reads the environment and, over it, flags given as to `load`; no file.

        Raises:
            InvalidArgument: a variable or a flag cannot be read.
        """
        read = _from_environment(os.environ if environ is None else environ)
        return cls._from_layer({**read, **_paths(flags or {})})

    @classmethod
    def load(
        cls,
        *,
        flags: Mapping[str, tuple[str, Any]] | None = None,
        file: Path | None = None,
        directory: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Self:
        """Merges the file, the environment and the flags; each overrides the one before it, key by key.

        Args:
            flags: by the dotted name of the setting, "resources.memory", the flag as it was written and its value.
            file: a configuration file that must exist; without it, `runtime-config.yaml` if `directory` has one,
                which must not say where credentials go (`uapi`) or what agents may use (`permissions`).
            directory: the working directory if None.
            environ: the process's if None.

        Raises:
            InvalidArgument: one of them says what cannot be read, or must not be said there.
        """
        merged: dict[str, Any] = {}
        optional = (directory or Path.cwd()) / FILE_NAME
        if file is not None or optional.exists():
            path = file or optional
            written = _mapping(_yaml(path), path.name)
            cls.from_dict(written, source=path.name)
            flat = _flat(written, path.name)
            if file is None:
                _check_found(flat)
            _merge(merged, flat)
        for layer in (_from_environment(os.environ if environ is None else environ), _paths(flags or {})):
            cls._from_layer(layer)
            _merge(merged, _nested(layer))
        return cls._validated(merged, ".".join)

    def check_supported(self) -> None:
        """Refuses what was written and this version cannot do, rather than to leave it out silently.

        Raises:
            FailedPrecondition: such a setting was written.
        """
        if self.mode == "serverless":
            raise errors.FailedPrecondition(
                "mode 'serverless' is not available in this version, which runs processes and containers; "
                "set mode: native or container (or AGENT_RUNTIME_MODE, or the flag --native)",
                reason="NOT_SUPPORTED",
            )

    @classmethod
    def _from_layer(cls, layer: Mapping[tuple[str, ...], tuple[str, Any]]) -> Self:
        def name(path: tuple[str, ...]) -> str:
            return next((said for known, (said, _) in layer.items() if path[: len(known)] == known), ".".join(path))

        return cls._validated(_nested(layer), name)

    @classmethod
    def _validated(cls, data: dict[str, Any], name: Any) -> Self:
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            problems = dict.fromkeys(_problem(item, name) for item in error.errors(include_url=False))
            raise errors.InvalidArgument("; ".join(problems), reason="INVALID_CONFIG") from None


def _problem(item: Any, name: Any) -> str:
    where = name(tuple(str(part) for part in item["loc"]))
    if item["type"] == "extra_forbidden":
        return f"{where} is not a setting; docs/configuration.md has all of them"
    message = item["msg"].removeprefix("Value error, ")
    return f"{where}: {message[0].lower() + message[1:]}"


def _flat(data: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Settings under `runtime:` moved beside the others."""
    flat = {key: value for key, value in data.items() if key != "runtime"}
    inner = data.get("runtime")
    if inner is not None:
        twice = sorted(flat.keys() & _mapping(inner, f"{source}: runtime").keys())
        if twice:
            raise errors.InvalidArgument(f"{source}: {twice[0]} stands twice, with and without runtime:")
        flat |= inner
    return flat


def _check_found(settings: Mapping[str, Any]) -> None:
    """Refuses what a file that nobody named must not say."""
    for key, decided in _BY_NAME_ONLY.items():
        if key in settings:
            raise errors.InvalidArgument(
                f"./{FILE_NAME} says {decided} ({key}), which only a file that you name may; say --config "
                f"{FILE_NAME} if it is yours",
                reason="INVALID_CONFIG",
            )


def _dotted(path: tuple[str, ...], data: Mapping[str, Any]) -> str:
    inner = data.get("runtime")
    under_runtime = isinstance(inner, Mapping) and path[:1] and path[0] in inner
    return ".".join(("runtime", *path) if under_runtime else path)


def _from_environment(environ: Mapping[str, str]) -> dict[tuple[str, ...], tuple[str, Any]]:
    found: dict[tuple[str, ...], tuple[str, Any]] = {}
    for variable, path in ENVIRONMENT.items():
        # An empty variable is how a shell or a compose file says "not set".
        if not (value := environ.get(variable, "").strip()):
            continue
        if variable != "AGENT_GPU_ENABLED":
            found[path] = (variable, value)
        elif value.lower() in _BOOLEANS:
            found[path] = (variable, _BOOLEANS[value.lower()])
        else:
            raise errors.InvalidArgument(f"{variable}: '{value}' is neither true nor false", reason="INVALID_CONFIG")
    return found


def _paths(flags: Mapping[str, tuple[str, Any]]) -> dict[tuple[str, ...], tuple[str, Any]]:
    return {tuple(name.split(".")): flag for name, flag in flags.items()}


def _nested(layer: Mapping[tuple[str, ...], tuple[str, Any]]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, (_, value) in layer.items():
        place = nested
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = value
    return nested


def _merge(into: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for key, value in layer.items():
        if value is None:
            continue
        if isinstance(value, Mapping):
            # A copy: a later layer must not change what the caller passed in.
            deeper = dict(into.get(key) or {})
            _merge(deeper, value)
            into[key] = deeper
        else:
            into[key] = value


def _mapping(value: Any, source: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise errors.InvalidArgument(f"{source} must be a mapping of settings", reason="INVALID_CONFIG")
    return {str(key): inner for key, inner in value.items()}


def _read(path: Path) -> str:
    try:
        return documents.read(path)
    except OSError as error:
        raise errors.InvalidArgument(f"{path} cannot be read: {error.strerror}", reason="INVALID_CONFIG") from None
    except ValueError as error:
        raise errors.InvalidArgument(f"{path} {error}", reason="INVALID_CONFIG") from None


def _yaml(path: Path) -> Any:
    try:
        # An empty file says nothing, which is fine.
        return documents.load(_read(path)) or {}
    except ValueError as error:
        raise errors.InvalidArgument(f"{path.name} {error}", reason="INVALID_CONFIG") from None
