"""Bounds hold while something writes as fast as it can, and the chore goes on when the disk refuses."""

import asyncio
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from agent_pool.logs import LogPolicy, LogStore, housekeeping
from tests.waiting import eventually

ENDLESS = "while True: print('x' * 99)"
MAX_BYTES = 2_000_000


async def test_the_bound_holds_under_a_writer_that_never_stops(tmp_path: Path) -> None:
    store = LogStore(tmp_path, lambda _: LogPolicy(max_bytes=MAX_BYTES))
    keeping = asyncio.create_task(housekeeping.keep(store))
    descriptor = store.open("a", "a-01")
    writer = subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=descriptor)
    os.close(descriptor)
    path = store.path("a", "a-01")
    seen = []

    def written() -> bool:
        seen.append(path.stat().st_blocks * 512)
        return store.size("a", "a-01") > 30 * MAX_BYTES

    try:
        await eventually(written, timeout_s=60)
    finally:
        writer.kill()
        writer.wait()
    await eventually(lambda: path.stat().st_blocks * 512 <= MAX_BYTES)
    keeping.cancel()
    await asyncio.wait([keeping])
    # While it went on. What is written between two looks is on top; how much that is, is the machine's to say.
    assert min(seen[-len(seen) // 4 :]) <= MAX_BYTES
    *whole, _ = store.past("a", ["a-01"])  # the last one may be cut short
    assert {line.text for line in whole} == {"x" * 99}


class Failing:
    """A log store that cannot be kept."""

    def __init__(self, error: Exception) -> None:
        self._error = error
        self.rounds = 0

    def hold_bounds(self) -> None:
        self.rounds += 1
        raise self._error


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("of a policy")])
async def test_it_goes_on(error: Exception) -> None:
    failing = Failing(error)
    task = asyncio.create_task(housekeeping.keep(cast(LogStore, failing)))
    await eventually(lambda: failing.rounds >= 3)
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])
