"""Whose process a pool takes for a worker's."""

import asyncio
from pathlib import Path

import pytest
from agentruntime import errors

from agent_pool.drivers.base import Exit, Launch
from agent_pool.drivers.worker_process import WorkerProcess
from tests.agent_pool.drivers.test_docker_request import revision


async def test_a_process_that_is_not_in_the_container_is_not_believed_to_be_its(tmp_path: Path) -> None:
    async def tell_exit() -> Exit:
        return Exit("it ended")

    worker = WorkerProcess(Launch("a-01~1", "a-01", revision(), ()), 1, None, tmp_path, 0)
    process = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        with pytest.raises(errors.FailedPrecondition, match="which is another's"):
            worker.attach(process.pid, None, tell_exit(), container="f" * 64)
        assert (worker.pid, worker.pidfd, worker.exit) == (0, -1, None)
    finally:
        process.kill()
        await process.wait()
