"""All settings of the pool: read once, from AGENT_POOL_* and the command line, and handed on whole."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from agent_pool.restart import Backoff
from agent_pool.scaling.scaler import Windows


class PoolSettings(BaseSettings):
    """Of one pool. Durations in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="AGENT_POOL_", frozen=True, cli_parse_args=False, extra="forbid")

    log_level: str = "INFO"
    # For all workers together when the pool itself is stopped.
    stop_grace_s: float = Field(10.0, ge=0)
    # Between the news that a worker drains and its draining, so that the gateway sends it nothing more.
    drain_delay_s: float = Field(0.1, ge=0)
    housekeeping_interval_s: float = Field(3.0, gt=0)
    restart_first_delay_s: float = Field(0.1, gt=0)
    restart_longest_delay_s: float = Field(60.0, gt=0)
    # So many of the agents that slept last keep their template, which makes them quick to wake.
    warm_templates: int = Field(16, ge=0)
    # How often agents are looked at, to be scaled or put to sleep, and over which times: see the scaler.
    scale_interval_s: float = Field(0.5, gt=0)
    scale_mean_s: float = Field(10.0, gt=0)
    scale_calm_s: float = Field(60.0, gt=0)
    scale_step_s: float = Field(2.0, gt=0)
    # Of agents for which nobody asked one; "": containers where an engine answers.
    mode: Literal["", "native", "container"] = Field("", validation_alias="AGENT_RUNTIME_MODE")
    # As the engine's own programs read it; "" for the engine's usual socket.
    docker_host: str = Field("", validation_alias="DOCKER_HOST")
    # What container images are made from, of agents whose agent.yaml names no base_image.
    base_image: str = "python:3.12-slim"
    # A file of public keys, or a directory with such files; and whether only images that one of them signed may run.
    trusted_keys: Path | None = None
    require_signed: bool = False
    # Where the key of the secrets is, as a systemd credential may be; "" for secrets.key in the runtime directory.
    secrets_key_file: str = ""
    # host:port for a gateway on another machine, with mutual TLS; "" for none. Files in PEM; those of `certs/` where
    # none are named.
    listen: str = ""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    # What of the environment the agents' processes begin with.
    path: str = Field("/usr/local/bin:/usr/bin:/bin", validation_alias="PATH")
    lang: str = Field("C.UTF-8", validation_alias="LANG")

    @property
    def backoff(self) -> Backoff:
        return Backoff(first_delay_s=self.restart_first_delay_s, longest_delay_s=self.restart_longest_delay_s)

    @property
    def scale_windows(self) -> Windows:
        return Windows(self.scale_mean_s, self.scale_calm_s, self.scale_step_s)

    @property
    def worker_environment(self) -> dict[str, str]:
        return {"PATH": self.path, "LANG": self.lang}
