"""What callers and agent authors import: `from agentruntime import Agent, Client`.

Importing this package alone loads nothing else, so that `agent --help` and the workers' templates stay light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentruntime.agent import Agent, Token
    from agentruntime.client import AsyncClient, Client
    from agentruntime.config import RuntimeConfig
    from agentruntime.conversation import ActorId, ChatMessage, Context, Part, RequestStatus

__all__ = [
    "ActorId", "Agent", "AsyncClient", "ChatMessage", "Client", "Context", "Part", "RequestStatus", "RuntimeConfig",
    "Token", "__version__",
]  # fmt: skip

_HOMES = {
    "ActorId": "agentruntime.conversation",
    "Agent": "agentruntime.agent",
    "AsyncClient": "agentruntime.client",
    "ChatMessage": "agentruntime.conversation",
    "Client": "agentruntime.client",
    "Context": "agentruntime.conversation",
    "Part": "agentruntime.conversation",
    "RequestStatus": "agentruntime.conversation",
    "RuntimeConfig": "agentruntime.config",
    "Token": "agentruntime.agent",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 — because it costs 20 ms that few need

        return version("agentruntime")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'agentruntime' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
