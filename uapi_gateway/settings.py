"""What can be set on the gateway, read once in `__main__` and passed whole."""

import ipaddress
import os
from pathlib import Path
from typing import Literal

from agentruntime import certificates
from agentruntime.certificates import Files
from agentruntime.errors import InvalidArgument
from agentruntime.home import Home
from agentruntime.units import parse_calls
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from uapi_gateway.tls import Sources


class Settings(BaseSettings):
    """Defaults < environment (`UAPI_GATEWAY_GRPC_PORT` …) < flags."""

    model_config = SettingsConfigDict(env_prefix="UAPI_GATEWAY_", frozen=True)

    # The runtime directory; `$UAPI_HOME` unless it is given here.
    root: Path = Field(default_factory=lambda: Home.default().root)
    # Where both ports listen. Any address but loopback needs TLS.
    host: str = "127.0.0.1"
    # TLS on both ports, with the certificates of `certs/` unless others are named. Files in PEM.
    tls: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    # Whose certificates of callers are taken, where they show one.
    tls_ca: Path | None = None
    # They must show one.
    tls_require_client_cert: bool = False
    # Listen on any address without TLS.
    allow_plaintext: bool = False
    # By which the gateway is known to agents outside and to the pool, and whose certificates it takes there.
    client_cert: Path | None = None
    client_key: Path | None = None
    client_ca: Path | None = None
    # 0 takes a free port; the bound one is in `run/gateway.json`.
    grpc_port: int = Field(default=50051, ge=0, le=65535)
    http_port: int = Field(default=8080, ge=0, le=65535)
    # Whether callers without a credential may call agents that demand none.
    anonymous: Literal["call", "none"] = "none"
    # Whose tokens are taken; by default identity-providers.yaml in the runtime directory, if it is there.
    identity_providers: Path | None = None
    # Between two fetches of an identity provider's keys.
    jwks_interval_s: float = Field(default=60.0, ge=0.1, le=86400)
    log_level: str = "INFO"
    # Threads of Envoy that carry calls.
    envoy_concurrency: int = Field(default_factory=lambda: len(os.sched_getaffinity(0)), ge=1)
    # What Envoy may have of memory. Before it gets there it ends the streams that hold the most.
    envoy_heap_bytes: int = Field(default=2**30, ge=2**27)
    # Calls of each caller whose key says nothing else, such as "100/s"; but for the platform's own user. All that are
    # anonymous are one caller. None is no limit.
    rate_per_caller: str = ""
    # From callers by TCP, to all ports together.
    max_connections: int = Field(default=10_000, ge=1)
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
    # https://host:port of a pool on another machine; "" for the one of the runtime directory.
    pool_endpoint: str = ""
    # Size at which the access log is renamed to `.1` and begun anew.
    access_log_bytes: int = Field(default=64 * 2**20, ge=2**16)
    # Size of the audit log at which its oldest records go.
    audit_bytes: int = Field(default=256 * 2**20, ge=2**20)
    # Connections that one worker may have to hosts outside; more wait.
    egress_connections: int = Field(default=256, ge=1)
    # After which one on which nothing moves is broken off.
    egress_idle_s: float = Field(default=3600.0, gt=0)

    # Where conversations are kept: postgresql://user:password@host/name; "" is conversations.db in the runtime
    # directory's `state`.
    conversations_url: str = ""
    # Between two looks whether conversations are older or longer than their agents say.
    conversations_interval_s: float = Field(default=60.0, gt=0)

    @property
    def home(self) -> Home:
        return Home(self.root)

    def check(self) -> None:
        """Refuses what would be open to others than it should be.

        Raises:
            InvalidArgument: the address is none, or anyone on the network could read what is said there.
            InvalidUnit: a rate cannot be read.
        """
        _ = self.calls_per_second
        try:
            loopback = ipaddress.ip_address(self.address).is_loopback
        except ValueError:
            raise InvalidArgument(
                f"the gateway does not listen on '{self.host}', which is no address; write one of this machine's, "
                "or 0.0.0.0 for all of them"
            ) from None
        if not (loopback or self.serves_tls or self.allow_plaintext):
            raise InvalidArgument(
                f"the gateway does not listen on {self.host} without TLS: anyone on the network could read and "
                "change what is said; add --tls (`agent certs init --host NAME` makes certificates), or "
                "--allow-plaintext"
            )
        if self.serves_tls and self.tls_cert is None and not (self.home.certs / "server.pem").exists():
            raise InvalidArgument(
                f"there are no certificates in {self.home.certs}; make them with `agent certs init`, or name "
                "yours by --cert and --key"
            )
        if self.pool_endpoint and not self.pool_endpoint.startswith("https://"):
            raise InvalidArgument(f"UAPI_GATEWAY_POOL_ENDPOINT is '{self.pool_endpoint}'; write https://host:port")
        if not self.conversations.startswith(("sqlite:///", "postgresql://")):
            # Not shown: there may be a password in it.
            raise InvalidArgument(
                "UAPI_GATEWAY_CONVERSATIONS_URL is none that conversations can be kept at; write "
                "postgresql://user:password@host/name, or leave it out"
            )
        if not self.serves_tls and (self.tls_ca or self.tls_require_client_cert):
            raise InvalidArgument(
                "--ca and --require-client-cert say which certificates of callers are taken, and need --tls"
            )
        if self.tls_require_client_cert and self.sources.callers is None:
            raise InvalidArgument(
                "--require-client-cert needs the authority that signs callers' certificates: --ca FILE"
            )

    @property
    def conversations(self) -> str:
        """The URL of what keeps them."""
        return self.conversations_url or f"sqlite:///{self.home.state.absolute() / 'conversations.db'}"

    @property
    def serves_tls(self) -> bool:
        """Naming a certificate is asking for TLS."""
        return self.tls or self.tls_cert is not None

    @property
    def local(self) -> bool:
        """Only programs of this machine can connect."""
        return ipaddress.ip_address(self.address).is_loopback

    @property
    def sources(self) -> Sources:
        """Where the gateway's certificates are."""
        made = self.home.certs
        authority = made / "ca.pem"
        server, callers = None, None
        if self.serves_tls:
            own = self.tls_cert is None
            server = _files(self.tls_cert or made / "server.pem", self.tls_key)
            callers = self.tls_ca or (authority if own else None)
        client = self.client_cert or made / "gateway.pem"
        return Sources(
            server=server,
            callers=callers,
            own=_files(client, self.client_key) if self.client_cert or client.exists() else None,
            authority=self.client_ca or self.tls_ca or (authority if authority.exists() else None),
            found=not (self.client_cert or self.client_ca or self.tls_ca),
        )

    @property
    def anonymous_calls(self) -> bool:
        """Whether callers without a credential may call."""
        return self.anonymous == "call"

    @property
    def calls_per_second(self) -> float:
        """Of each caller; 0 is no limit."""
        return parse_calls(self.rate_per_caller) if self.rate_per_caller else 0.0

    @property
    def address(self) -> str:
        """The IP address to listen on."""
        return "127.0.0.1" if self.host == "localhost" else self.host


def _files(cert: Path, key: Path | None) -> Files:
    return Files(cert, key or certificates.key_beside(cert))
