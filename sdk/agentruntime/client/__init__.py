"""What a caller uses: `Client` and its asynchronous twin `AsyncClient`."""

from agentruntime.client.aio import AsyncClient
from agentruntime.client.sync import Client

__all__ = ["AsyncClient", "Client"]
