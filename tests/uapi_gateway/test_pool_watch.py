"""What the pool said is written down even if the disk refuses for a while."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from agentruntime.home import Home

from tests.uapi_gateway.pool_service import PoolStandIn, deployment
from tests.waiting import eventually
from uapi_gateway import pool_watch
from uapi_gateway.pool_watch import PoolWatch, pool_channel
from uapi_gateway.registry import Registry
from uapi_gateway.store import Store


async def _at_once(_longest_s: float) -> bool:
    return True


async def test_a_change_is_acknowledged_once_calls_go_by_it(home: Home, tmp_path: Path) -> None:
    balances = asyncio.Event()

    async def balanced(_longest_s: float) -> bool:
        return await balances.wait()

    store, pool = Store(tmp_path / "gateway.db"), PoolStandIn()
    async with pool.serving(home), pool_channel(home.pool_socket) as channel:
        watch = PoolWatch(channel, Registry(), store, balanced)
        task = asyncio.create_task(watch.run())
        await eventually(lambda: watch.synced)
        pool.put(deployment("a", {"a-01": "unix:/a"}))
        pool.put(deployment("b", {"b-01": "unix:/b"}))
        await eventually(lambda: {each.agent for each in store.load()[0]} == {"a", "b"})
        assert pool.acknowledged == []
        balances.set()
        # The latest stands for those before it.
        await eventually(lambda: pool.acknowledged[-1:] == [2])
        assert len(pool.acknowledged) <= 2
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    store.close()


async def test_a_write_that_fails_is_tried_again(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_watch, "_SAVE_DELAY_S", 0.01)
    path = tmp_path / "gateway.db"
    store, pool = Store(path), PoolStandIn()
    pool.put(deployment("a", {"a-01": "unix:/a"}))
    with closing(sqlite3.connect(path)) as disk, disk:
        disk.execute("ALTER TABLE deployments RENAME TO away")
    async with pool.serving(home), pool_channel(home.pool_socket) as channel:
        watch = PoolWatch(channel, Registry(), store, _at_once)
        task = asyncio.create_task(watch.run())
        await eventually(lambda: watch.synced)
        newer = deployment("a", {"a-01": "unix:/a", "a-02": "unix:/b"})
        pool.put(newer)
        with closing(sqlite3.connect(path)) as disk, disk:
            disk.execute("ALTER TABLE away RENAME TO deployments")
        await eventually(lambda: store.load()[0] == [newer])
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    store.close()


async def test_a_pool_that_is_slow_to_greet_is_reached(home: Home) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            # Longer than between two attempts.
            await asyncio.sleep(0.3)
            # An empty SETTINGS frame, https://www.rfc-editor.org/rfc/rfc9113#section-6.5.
            writer.write(bytes.fromhex("000000 04 00 00000000"))
            await reached.wait()

    reached = asyncio.Event()
    async with await asyncio.start_unix_server(greet, home.pool_socket), pool_channel(home.pool_socket) as channel:
        try:
            await asyncio.wait_for(channel.channel_ready(), 5)
        finally:
            reached.set()
