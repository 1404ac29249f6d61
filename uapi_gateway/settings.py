"""What can be set on the gateway, read once in `__main__` and passed whole."""

import ipaddress
import os
from pathlib import Path
from typing import Literal

from agentruntime.errors import InvalidArgument
from agentruntime.home import Home
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Defaults < environment (`UAPI_GATEWAY_GRPC_PORT` …) < flags."""

    model_config = SettingsConfigDict(env_prefix="UAPI_GATEWAY_", frozen=True)

    # The runtime directory; `$UAPI_HOME` unless it is given here.
    root: Path = Field(default_factory=lambda: Home.default().root)
    # Where both ports listen. Only loopback until there are TLS and authentication.
    host: str = "127.0.0.1"
    # 0 takes a free port; the bound one is in `run/gateway.json`.
    grpc_port: int = Field(default=50051, ge=0, le=65535)
    http_port: int = Field(default=8080, ge=0, le=65535)
    # Whether callers without a credential may call agents that demand none. By default on loopback only.
    anonymous: Literal["call", "none"] | None = None
    # Whose tokens are taken; by default identity-providers.yaml in the runtime directory, if it is there.
    identity_providers: Path | None = None
    # Between two fetches of an identity provider's keys.
    jwks_interval_s: float = Field(default=60.0, ge=0.1, le=86400)
    log_level: str = "INFO"
    # Threads of Envoy that carry calls.
    envoy_concurrency: int = Field(default_factory=lambda: len(os.sched_getaffinity(0)), ge=1)
    # How long calls in flight may take to finish when the gateway is told to end.
    drain_s: float = Field(default=5.0, ge=0)
    # How long a call waits for a worker to become ready, if the caller's deadline allows it.
    relay_wait_s: float = Field(default=10.0, ge=0)
    # How long it waits for an agent that sleeps to wake: a model may have to be loaded. The pool gives up by itself
    # after twice the agent's start timeout.
    relay_wake_wait_s: float = Field(default=120.0, ge=0)
    # Requests that the relay may hold in all, for calls that wait or could have to be made again.
    relay_held_bytes: int = Field(default=256 * 2**20, ge=0)
    # Between two health checks of an agent that registered itself.
    health_interval_s: float = Field(default=10.0, gt=0)
    # After so many failed checks in a row it gets no calls, until one succeeds.
    health_failures: int = Field(default=3, ge=1)
    # Between two reports of the agents' load, by Envoy to the gateway and by the gateway to the pool.
    load_interval_s: float = Field(default=0.5, ge=0.1, le=10)
    # Size at which the access log is renamed to `.1` and begun anew.
    access_log_bytes: int = Field(default=64 * 2**20, ge=2**16)
    # Size of the audit log at which its oldest records go.
    audit_bytes: int = Field(default=256 * 2**20, ge=2**20)

    @property
    def home(self) -> Home:
        return Home(self.root)

    def check(self) -> None:
        """Refuses what the gateway must not do yet.

        Raises:
            InvalidArgument: the address is not one of this machine's own loopback.
        """
        host = "127.0.0.1" if self.host == "localhost" else self.host
        try:
            loopback = ipaddress.ip_address(host).is_loopback
        except ValueError:
            loopback = False
        if not loopback:
            raise InvalidArgument(
                f"the gateway does not listen on '{self.host}': any address but loopback needs TLS and "
                "authentication first; use 127.0.0.1"
            )

    @property
    def anonymous_calls(self) -> bool:
        """Whether callers without a credential may call."""
        if self.anonymous is None:
            return ipaddress.ip_address(self.address).is_loopback
        return self.anonymous == "call"

    @property
    def address(self) -> str:
        """The IP address to listen on."""
        return "127.0.0.1" if self.host == "localhost" else self.host
