"""What an isolated worker cannot do, each beside the same attempt by a plain process, which succeeds."""

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb
from agentruntime.home import Home

from tests.agent_pool.harness import RunningPool
from tests.escape import cells
from tests.escape.attempts import ALL, AT_IMPORT, Attempt
from tests.escape.cells import HELD, Cell

pytestmark = [
    pytest.mark.integration,
    pytest.mark.root,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),  # the first container makes its image
]
_NONE = "open('/tmp/x', 'w').close()"
MODES = {"native": pb.RUNTIME_MODE_NATIVE, "container": pb.RUNTIME_MODE_CONTAINER}


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="uapi-escape-") as name:
        # Everybody may come in: what keeps a worker from the secret is no permission.
        Path(name).chmod(0o755)
        yield Path(name)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=MODES)
async def cell(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[Cell]:
    mode = MODES[request.param]
    engine = request.getfixturevalue("engine").environment if mode == pb.RUNTIME_MODE_CONTAINER else {}
    home = Home(directory / request.param[0])
    home.root.mkdir(mode=0o700)
    running = RunningPool(home, {**os.environ, **engine, "AGENT_POOL_DRAIN_DELAY_S": "0"})
    with cells.host(directory) as host:
        await running.start()
        try:
            yield await cells.build(running, host, mode)
        finally:
            await running.end()
    assert running.leftovers() == []


@pytest.mark.parametrize("attempt", ALL, ids=lambda attempt: attempt.name.replace(" ", "-"))
async def test_a_worker_is_held(cell: Cell, attempt: Attempt) -> None:
    code = cell.fill(attempt)
    cells.outside(attempt, code)
    answer = await cell.inside(code)
    assert answer.startswith(HELD), answer


async def test_an_import_is_held(cell: Cell) -> None:
    *answers, none = await cell.at_import([*map(cell.fill, AT_IMPORT), _NONE])
    assert [
        (attempt.name, answer)
        for attempt, answer in zip(AT_IMPORT, answers, strict=True)
        if not answer.startswith(HELD)
    ] == []
    assert none == "escaped"


async def test_an_attempt_that_is_none_succeeds(cell: Cell) -> None:
    assert await cell.inside(_NONE) == "escaped"
