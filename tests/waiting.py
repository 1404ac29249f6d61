"""Waiting for a condition, bounded: the tests' one substitute for sleeping."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

_POLL_S = 0.01


async def eventually(condition: Callable[[], Any], timeout_s: float = 10.0) -> Any:
    """Polls until a condition, sync or async, is true; its last value."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if isinstance(value, Awaitable):
            value = await value
        if value or time.monotonic() > deadline:
            assert value, f"not within {timeout_s:g} s"
            return value
        await asyncio.sleep(_POLL_S)


def until(condition: Callable[[], Any], timeout_s: float = 10.0) -> Any:
    """`eventually` for code that is not async."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value or time.monotonic() > deadline:
            assert value, f"not within {timeout_s:g} s"
            return value
        time.sleep(_POLL_S)
