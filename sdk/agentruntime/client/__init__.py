"""What a caller uses: `Client` and its asynchronous twin `AsyncClient`, each loaded when it is first asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentruntime.client.aio import AsyncClient
    from agentruntime.client.sync import Client

__all__ = ["AsyncClient", "Client"]

_HOMES = {"AsyncClient": "agentruntime.client.aio", "Client": "agentruntime.client.sync"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'agentruntime.client' has no attribute '{name}'")
