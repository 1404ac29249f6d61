"""Workers' logs: append-only files that processes write by themselves, kept for a while, read, sent elsewhere."""

from agent_pool.logs.retention import LogPolicy
from agent_pool.logs.store import LogStore

__all__ = ["LogPolicy", "LogStore"]
