"""Workers' logs: append-only files that processes write by themselves, rotated, kept for a while, read."""

from agent_pool.logs.store import LogPolicy, LogStore

__all__ = ["LogPolicy", "LogStore"]
