"""DebugWorker: carries the Debug Adapter Protocol between a caller and the debugger of a worker."""

import asyncio
from collections.abc import AsyncIterator

from agentruntime import errors
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb

from agent_pool.pool import Pool
from agent_pool.worker import Worker

_PIECE_BYTES = 64 * 1024


async def carry(pool: Pool, requests: AsyncIterator[pb.DebugWorkerRequest]) -> AsyncIterator[bytes]:
    """What the debugger says, while it is told what the requests bring.

    Raises:
        InvalidArgument: the first request names no worker.
        WorkerNotFound: there is none of that name.
        FailedPrecondition: it cannot be debugged; says why.
        Unavailable: its debugger does not answer.
    """
    first = await anext(requests, None)
    if first is None or not first.worker_id:
        raise errors.InvalidArgument("the first request must name a worker")
    worker_id = first.worker_id
    reader, writer = await pool.driver.debug(_worker(pool, worker_id).key)
    telling = asyncio.create_task(_tell(writer, requests))
    heard = False
    try:
        while piece := await reader.read(_PIECE_BYTES):
            heard = True
            yield piece
        if not heard:
            raise errors.Unavailable(f"worker '{worker_id}' starts no debugger; `agent logs {worker_id}` says why")
    finally:
        telling.cancel()
        writer.close()
        await asyncio.wait([telling])


def _worker(pool: Pool, worker_id: str) -> Worker:
    """The one of that name, which can be debugged."""
    deployment, worker = pool.worker(worker_id)
    revision = deployment.revision(worker.revision)
    agent = deployment.agent
    if not revision.debug:
        raise errors.FailedPrecondition(
            f"worker '{worker_id}' does not run with debug; `agent update {agent} --debug` makes workers that do"
        )
    if revision.host_network or deployment.spec_of(worker).prepared.degraded:
        # A debugger is reached by a port without a password: on the host's network, by everybody on this machine.
        raise errors.FailedPrecondition(
            f"worker '{worker_id}' has no network of its own, so anyone on this machine could reach its debugger; "
            f"`agent update {agent} --network isolated` gives it one, where `agent doctor` says that it can"
        )
    if not worker.pid:
        raise errors.FailedPrecondition(f"worker '{worker_id}' does not run now; `agent ps` shows it")
    return worker


async def _tell(writer: asyncio.StreamWriter, requests: AsyncIterator[pb.DebugWorkerRequest]) -> None:
    """Ends with the caller's side of the conversation, and the debugger's with it."""
    try:
        async for request in requests:
            writer.write(request.data)
            await writer.drain()
    finally:
        writer.close()
