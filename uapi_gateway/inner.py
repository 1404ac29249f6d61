"""The gateway's own way to agents: through Envoy, by a listener that only it reaches, and where it says who calls."""

from agentruntime.home import Home
from grpc import aio

from uapi_gateway.sockets import inner_socket

_LONGEST_RESPONSE_BYTES = 64 * 2**20


def channel(home: Home) -> aio.Channel:
    """A channel there. Calls on it carry `x-uapi-agent` and `x-uapi-principal`, and are not asked who they are."""
    return aio.insecure_channel(
        f"unix:{inner_socket(home)}",
        options=[
            ("grpc.initial_reconnect_backoff_ms", 50),
            # Not a back-off, despite its name, but the least time that a connection gets to be made.
            ("grpc.min_reconnect_backoff_ms", 2000),
            ("grpc.max_reconnect_backoff_ms", 500),
            ("grpc.max_receive_message_length", _LONGEST_RESPONSE_BYTES),
        ],
    )
