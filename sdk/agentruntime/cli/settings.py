"""The flags that say how an agent runs: each declared once, for all verbs that take it."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from agentruntime import api_keys, errors
from agentruntime.cli import connection
from agentruntime.config import RuntimeConfig
from agentruntime.sections import (
    Compression,
    HealthFailureAction,
    LoadBalancer,
    LogFormat,
    OnWorkerLost,
    SecurityContext,
    WhenBusy,
)

_REVISION = ("run", "update")
_NUMBER = ("run", "scale")
_EVERY = ("run", "update", "scale")

Environment = list[str]


@dataclass(frozen=True)
class Flag:
    """One flag, and the setting of `RuntimeConfig` that it sets."""

    # As it is written; "--this/--no-this" for both values of a boolean, and other names after a comma.
    names: str
    kind: Any
    path: str
    verbs: tuple[str, ...]
    help: str
    # What stands for its value in the help, where the kind does not say it.
    metavar: str | None = None

    @property
    def written(self) -> str:
        return self.names.split(",")[0].split("/")[0]

    @property
    def parameter(self) -> str:
        return self.written.strip("-").replace("-", "_")


_FLAGS: dict[str | None, tuple[Flag, ...]] = {
    "Resources of each worker": (
        Flag("--memory", str, "resources.memory", _EVERY, "Reserved; the cap too, without --memory-limit.", "SIZE"),
        Flag("--cpu", str, "resources.cpu", _EVERY, "Cores reserved (0.5, 500m); the cap likewise.", "CORES"),
        Flag("--memory-limit", str, "resources.memory_limit", _EVERY, "The kernel kills a worker beyond it.", "SIZE"),
        Flag("--cpu-limit", str, "resources.cpu_limit", _EVERY, "The kernel slows a worker down to it.", "CORES"),
        Flag("--gpu", int, "resources.gpu", _EVERY, "Whole GPUs.", "N"),
    ),
    "What workers run with": (
        Flag("--native/--container", bool, "mode", _REVISION, "As processes, or as containers of a Docker engine."),
        Flag("--venv", Path, "venv", _REVISION, "Python virtual environment, on the pool's machine.", "PATH"),
        Flag("--env,-e", Environment, "env", _REVISION, "Environment; may be repeated.", "NAME=VALUE"),
        Flag("--debug/--no-debug", bool, "debug", _REVISION, "Let `agent debug` attach a debugger."),
    ),
    "Walls around each worker": (
        Flag("--network", str, "network", _REVISION, "isolated (the default, also called none) or host.", "MODE"),
        Flag(
            "--network-limit",
            str,
            "isolation.network_limit",
            _REVISION,
            "Of what it sends and receives, with --network host; 100Mbps.",
            "RATE",
        ),
        Flag(
            "--security-context",
            SecurityContext,
            "isolation.security_context",
            _REVISION,
            "restricted: only the system calls that Python and gRPC make.",
        ),
        Flag(
            "--read-only-root/--no-read-only-root",
            bool,
            "isolation.read_only_root",
            _REVISION,
            "Nothing but /tmp can be written; refused where that cannot be enforced.",
        ),
    ),
    "Who may call it, and whom it may": (
        Flag("--tls/--no-tls", bool, "access.tls", _REVISION, "Callers must come over TLS."),
        Flag(
            "--api-key",
            Environment,
            "access.keys",
            _REVISION,
            "Callers must hold this API key; its name, or the key itself; none: no longer. May be repeated.",
            "KEY",
        ),
        Flag(
            "--oauth2-client-id",
            str,
            "access.oauth2_client_id",
            _REVISION,
            "Callers must bring a token issued to or for this client; none: no longer.",
            "ID",
        ),
        Flag(
            "--egress",
            Environment,
            "permissions.egress",
            _REVISION,
            "It may connect there, also on this machine, beside agent.yaml's; none: no longer. May be repeated.",
            "HOST:PORT",
        ),
    ),
    "Logs": (
        Flag("--log-level", str, "log_level", _REVISION, "DEBUG, INFO, WARNING or ERROR.", "LEVEL"),
        Flag("--log-format", LogFormat, "logging.format", _REVISION, "Of lines that are kept and sent; text."),
        Flag(
            "--log-aggregator",
            str,
            "logging.aggregator",
            _REVISION,
            "fluentd (localhost:24224), fluentd://host:port or none: where lines are sent, too.",
            "WHERE",
        ),
        Flag("--log-retention", str, "logging.retention", _REVISION, "How long lines are kept; 7d.", "DURATION"),
        Flag("--log-max-size", str, "logging.max_size", _REVISION, "Of a worker's kept lines; 100MB.", "SIZE"),
    ),
    "Health and restarts": (
        Flag(
            "--restart-policy",
            Literal["always", "on-failure", "no"],
            "restart_policy",
            _REVISION,
            "When a worker that ended by itself is started again; always.",
        ),
        Flag(
            "--health-check-failure-action",
            HealthFailureAction,
            "health_check.failure_action",
            _REVISION,
            "What is done with an unhealthy worker; restart.",
        ),
        Flag("--health-interval", str, "health_check.interval", _REVISION, "Between checks; 10s.", "DURATION"),
        Flag("--health-timeout", str, "health_check.timeout", _REVISION, "For the answer to one; 5s.", "DURATION"),
        Flag("--health-retries", int, "health_check.retries", _REVISION, "Failures until unhealthy; 3.", "N"),
        Flag("--start-timeout", str, "health_check.start_timeout", _REVISION, "To become ready; 60s.", "DURATION"),
    ),
    "Number of workers": (
        Flag("--replicas", int, "replicas", _NUMBER, "How many; one by default, 0 is an agent that sleeps.", "N"),
        Flag("--auto-scale/--no-auto-scale", bool, "scaling.auto_scale", _EVERY, "As many as the load needs."),
        Flag("--min", int, "scaling.min_replicas", _EVERY, "The fewest; with 0, the default, it may sleep.", "N"),
        Flag("--max", int, "scaling.max_replicas", _EVERY, "The most; 10.", "N"),
        Flag("--cpu-threshold", float, "scaling.cpu_threshold", _EVERY, "CPU use that is too much; 80.", "PERCENT"),
        Flag("--target-concurrency", float, "scaling.target_concurrency", _EVERY, "Calls in flight for each.", "N"),
        Flag(
            "--idle-timeout", str, "scaling.idle_timeout", _EVERY, "Without calls, until it sleeps; 5m.", "DURATION"
        ),
    ),
    "Calls": (
        Flag("--load-balancer", LoadBalancer, "traffic.load_balancer", _REVISION, "How they are spread."),
        Flag(
            "--circuit-breaker/--no-circuit-breaker",
            bool,
            "traffic.circuit_breaker",
            _REVISION,
            "A worker that keeps failing gets none for some seconds.",
        ),
        Flag(
            "--failure-threshold", int, "traffic.failure_threshold", _REVISION, "Failures in a row for that; 5.", "N"
        ),
        Flag("--concurrency", int, "concurrency", _REVISION, "Handled by a worker at a time; 64.", "N"),
        Flag("--queue", int, "queue", _REVISION, "Waiting beyond those; 1024.", "N"),
        Flag("--compression", Compression, "compression", _REVISION, "Of responses; none."),
        Flag(
            "--optimize-throughput/--no-optimize-throughput",
            bool,
            "optimize_throughput",
            _REVISION,
            "Gather the pieces of streams for up to 20 ms.",
        ),
        Flag(
            "--cache-responses/--no-cache-responses,--cache-enabled",
            bool,
            "cache.enabled",
            _REVISION,
            "Give answers of idempotent methods again.",
        ),
        Flag("--cache-ttl", str, "cache.ttl", _REVISION, "For how long; 300s.", "DURATION"),
        Flag("--cache-size", str, "cache.size", _REVISION, "Of all kept answers; 100MB.", "SIZE"),
    ),
    "Conversations": (
        Flag(
            "--when-busy",
            WhenBusy,
            "conversations.when_busy",
            _REVISION,
            "What becomes of a message that comes while another one is handled; queue.",
        ),
        Flag(
            "--on-worker-lost",
            OnWorkerLost,
            "conversations.on_worker_lost",
            _REVISION,
            "Handle a message again whose worker was lost, or report it as failed; retry.",
        ),
        Flag(
            "--conversation-ttl",
            str,
            "conversations.ttl",
            _REVISION,
            "How long after its last event one is deleted; 0, the default, keeps them.",
            "DURATION",
        ),
        Flag(
            "--conversation-events",
            int,
            "conversations.max_events",
            _REVISION,
            "Of each, beyond which its oldest messages go; 0, the default, is no bound.",
            "N",
        ),
        Flag("--conversation-bytes", str, "conversations.max_bytes", _REVISION, "The same of its size.", "SIZE"),
        Flag(
            "--conversation-idle",
            str,
            "conversations.idle",
            _REVISION,
            "Without a message, until a worker forgets what it has at hand; 60s.",
            "DURATION",
        ),
    ),
    None: (
        Flag("--allow-unenforced", bool, "allow_unenforced", _EVERY, "Run although a limit cannot be enforced here."),
    ),
}


ALL = tuple(flag for flags in _FLAGS.values() for flag in flags)


@dataclass(frozen=True)
class Given:
    """The flags of one command line: by the setting's path, the flag as it is written and its value."""

    values: dict[str, tuple[str, Any]]

    def config(self) -> RuntimeConfig:
        """What the flags say, and nothing else.

        Raises:
            InvalidArgument: one of them cannot be read; names it.
        """
        return RuntimeConfig.from_flags(self.values)

    def load(self, file: Path | None) -> RuntimeConfig:
        """The flags over the environment over the configuration file.

        Raises:
            InvalidArgument: something cannot be read; names the file and key, the variable or the flag.
        """
        return RuntimeConfig.load(flags={**connection.flags(), **self.values}, file=file)

    def whole_keys(self) -> list[str]:
        """The API keys that were given whole, not by name."""
        _, given = self.values.get("access.keys", ("", []))
        return [key for key in given if key.startswith(api_keys.PREFIX)]


def taken(verb: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds the flags that a verb takes before the last parameter of its command, which gets them as `flags`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        flags = {
            flag.parameter: (flag, panel) for panel, some in _FLAGS.items() for flag in some if verb in flag.verbs
        }
        own = inspect.signature(command)
        kept = [parameter for name, parameter in own.parameters.items() if name != "flags"]
        added = [_parameter(flag, panel) for flag, panel in flags.values()]

        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            given = {name: arguments.pop(name) for name in flags}
            values = {flags[name][0].path: (flags[name][0].written, value) for name, value in given.items()}
            command(**arguments, flags=Given({path: _read(*of) for path, of in values.items() if of[1] is not None}))

        parameters = [*kept[:-1], *added, kept[-1]]
        # Typer looks at these two.
        vars(run)["__signature__"] = own.replace(parameters=parameters)
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _parameter(flag: Flag, panel: str | None) -> inspect.Parameter:
    option = typer.Option(*flag.names.split(","), help=flag.help, metavar=flag.metavar, rich_help_panel=panel)
    return inspect.Parameter(
        flag.parameter, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[flag.kind | None, option]
    )


def _read(written: str, value: Any) -> tuple[str, Any]:
    """A flag's value as the configuration file has it."""
    if written == "--native":
        return written, "native" if value else "container"
    if written == "--venv":
        return written, str(value.absolute())
    return written, _environment(value) if written == "--env" else value


def _environment(pairs: list[str]) -> dict[str, str]:
    environment = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise errors.InvalidArgument(f"--env: '{pair}' is not NAME=VALUE")
        environment[key] = value
    return environment
