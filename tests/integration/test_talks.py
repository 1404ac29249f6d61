"""200 conversations while workers and the gateway, or the database's connections, end under them."""

import pytest

from benchmarks.chaos import talks
from tests.postgresql import Server

pytestmark = [pytest.mark.integration, pytest.mark.root, pytest.mark.timeout(300)]


async def test_nothing_that_was_acknowledged_is_lost() -> None:
    seen = await talks.play(talks.SHORT)
    assert seen.kills.count("worker") >= 1
    assert seen.kills.count("gateway") >= 1
    processes = {event.chunk.name for log in seen.logs.values() for event in log if event.HasField("chunk")}
    assert len(processes) >= talks.SHORT.workers
    assert {what: found for what, found in talks.faults(seen).items() if found} == {}


async def test_nor_where_a_postgresql_keeps_it(postgresql_server: Server) -> None:
    seen = await talks.play_on_database(talks.SHORT_DATABASE, postgresql_server)
    assert seen.kills.count("database") >= 1
    assert {what: found for what, found in talks.faults(seen).items() if found} == {}
