"""What every call of a client gets: a deadline, the trace, the credential, the agent's name. No I/O in here."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import grpc

from agentruntime import calls, errors, names, status, trace
from agentruntime.client.target import Target, TokenSource

AGENT_KEY = "x-uapi-agent"
# Between the gateway's clock for a deadline and ours.
_DEADLINE_SKEW_S = 0.1
# What gRPC's core says of a connection that ended under a call, and Envoy of one behind it.
_BROKEN = re.compile(
    r"Stream removed|Socket closed|Connection (reset|aborted)|Broken pipe|GOAWAY|Transport closed"
    r"|disconnect/reset before headers"
)
Metadata = list[tuple[str, str | bytes]]


@dataclass(frozen=True)
class CallPolicy:
    """What is added to the calls of one channel."""

    token: TokenSource
    timeout_s: float
    # The agent or worker that calls go to; "" leaves it to the gateway.
    agent: str = ""
    # They are system calls, and belong to the call that the worker handles.
    inherits: bool = False

    @classmethod
    def of(cls, target: Target, agent: str = "") -> "CallPolicy":
        """The policy of calls to one agent of a target.

        Raises:
            InvalidArgument: the agent's name is none.
        """
        inherits = bool(calls.address) and target.address == calls.address
        return cls(target.token, target.timeout_s, names.check_agent_name(agent) if agent else "", inherits)

    def deadline_s(self, given_s: float | None) -> float | None:
        """The caller's own deadline, else the default; `math.inf` is a caller's way to ask for none.

        Never beyond that of the call which is being handled, where the calls belong to it.
        """
        wait_s = self.timeout_s if given_s is None else given_s
        if incoming := self._incoming():
            left_s = incoming.left_s()
            wait_s = wait_s if left_s is None else min(wait_s, left_s)
        return None if math.isinf(wait_s) else wait_s

    def _incoming(self) -> calls.Incoming | None:
        return calls.current.get() if self.inherits else None

    def metadata(self, given: Iterable[tuple[str, str | bytes]] | None) -> Metadata:
        """The caller's metadata and ours; where both name a key, the caller's stays.

        Blocks where the token comes of a source that must ask for it, and raises what that raises.
        """
        result: Metadata = [(key, value) for key, value in given or ()]
        present = {key for key, _ in result}
        current = trace.current.get()
        token = self.token if isinstance(self.token, str) else self.token()
        ours = {
            trace.HEADER: (current.child() if current else trace.TraceContext.new()).header(),
            AGENT_KEY: self.agent,
            calls.CHAIN_KEY: incoming.chain if (incoming := self._incoming()) else "",
            "authorization": f"Bearer {token}" if token else "",
        }
        result.extend((key, value) for key, value in ours.items() if value and key not in present)
        return result


def agent_in(metadata: Metadata) -> str:
    """The agent or worker that a call with this metadata goes to; "" if the gateway chooses."""
    return next((str(value) for key, value in metadata if key == AGENT_KEY), "")


def failure(
    error: grpc.RpcError, timeout_s: float | None, elapsed_s: float, before: errors.AgentError | None = None
) -> errors.AgentError:
    """The error of a call that failed after so many seconds of those it had, and after an attempt that failed before.

    A gateway that ends a stream at its deadline is seen as a cut stream when its reset arrives before our own clock
    strikes; that is no lost worker. And gRPC has no name of its own for a connection that broke.
    """
    decoded = status.decode(error)
    if decoded.reason == "UNAVAILABLE" and _BROKEN.search(decoded.message):
        return errors.Unavailable(
            f"the connection broke during the call, which may have been carried out ({decoded.message})",
            reason="CONNECTION_LOST",
        )
    if timeout_s is None or decoded.reason not in ("DEADLINE_EXCEEDED", "WORKER_LOST"):
        return decoded
    if decoded.reason == "WORKER_LOST" and elapsed_s < timeout_s - _DEADLINE_SKEW_S:
        return decoded
    message = f"the answer was not complete within the {timeout_s:g} s that the call had"
    if before:
        message += f"; the attempt before failed: {before.message}"
    return errors.DeadlineExceeded(message, metadata={"before": before.message} if before else None)


def channel_options(target: Target, version: str) -> list[tuple[str, str | int]]:
    """Of a channel to that target (https://grpc.github.io/grpc/core/group__grpc__arg__keys.html)."""
    options: list[tuple[str, str | int]] = [("grpc.primary_user_agent", f"agentruntime/{version}")]
    if target.local:
        # A proxy named in the environment is not the way to this machine itself. And whoever listens here answers at
        # once: a gateway that was restarted is found again in a moment.
        options += [
            ("grpc.enable_http_proxy", 0),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 300),
            # Not a back-off, despite its name, but the least time that a connection gets to be made.
            ("grpc.min_reconnect_backoff_ms", 2000),
        ]
    else:
        options += [("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 5000)]
    return options


def credentials(target: Target) -> grpc.ChannelCredentials | None:
    """Of a channel to that target: None is plain text.

    Raises:
        InvalidArgument: one of its files cannot be read.
    """
    if not target.secure:
        return None
    ca, key, cert = (_read(path) for path in (target.ca, target.key, target.cert))
    return grpc.ssl_channel_credentials(ca, key, cert)


def _read(path: str) -> bytes | None:
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise errors.InvalidArgument(
            f"{path} cannot be read: {error.strerror}; name another by --ca, --cert, --key or in UAPI_TLS_*"
        ) from None
