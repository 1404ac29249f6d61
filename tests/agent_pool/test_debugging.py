"""A debugger at a worker, in a real conversation of the Debug Adapter Protocol; and who is let in, and when not."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb
from grpc import aio

from tests.agent_pool import harness
from tests.agent_pool.harness import RunningPool

pytestmark = pytest.mark.integration
CODE = """\
from agentruntime import Agent


class Tester(Agent):
    def generate(self, prompt, *, temperature, max_tokens):
        loud = prompt.upper()
        return loud + "!"


class Quiet(Agent):
    async def generate(self, prompt, *, temperature, max_tokens):
        loud = prompt.upper()
        return loud + "!"
"""
LINE = {"tester:Tester": 7, "tester:Quiet": 13}
# Where the developer has it.
PROJECT = "/home/dev/tester"
DEBUG = pb.Serving(debug=True)


class Dap:
    """The client's end of the Debug Adapter Protocol over DebugWorker."""

    def __init__(self, pool: RunningPool, worker_id: str) -> None:
        self._said: asyncio.Queue[pb.DebugWorkerRequest | None] = asyncio.Queue()
        self._said.put_nowait(pb.DebugWorkerRequest(worker_id=worker_id))
        self._heard: Any = pool.pool.DebugWorker(self._requests())
        self._buffer = b""
        self._number = 0
        self.messages: list[dict[str, Any]] = []

    async def _requests(self) -> AsyncIterator[pb.DebugWorkerRequest]:
        while (request := await self._said.get()) is not None:
            yield request

    def say(self, command: str, **arguments: Any) -> int:
        self._number += 1
        body = {"seq": self._number, "type": "request", "command": command, "arguments": arguments}
        data = json.dumps(body).encode()
        self._said.put_nowait(pb.DebugWorkerRequest(data=b"Content-Length: %d\r\n\r\n" % len(data) + data))
        return self._number

    async def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        return await self.answer(self.say(command, **arguments))

    async def answer(self, number: int) -> dict[str, Any]:
        message = await self.until(lambda each: each.get("request_seq") == number)
        assert message["success"], message
        return dict(message.get("body") or {})

    async def event(self, name: str) -> dict[str, Any]:
        return dict((await self.until(lambda each: each.get("event") == name)).get("body") or {})

    async def until(self, accept: Any) -> dict[str, Any]:
        async with asyncio.timeout(20):
            while True:
                for message in self.messages:
                    if accept(message):
                        self.messages.remove(message)
                        return message
                self.messages.append(await self._next())

    async def _next(self) -> dict[str, Any]:
        while b"\r\n\r\n" not in self._buffer:
            await self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        length = int(head.partition(b"Content-Length: ")[2])
        while len(self._buffer) < length:
            await self._more()
        message: dict[str, Any] = json.loads(self._buffer[:length])
        self._buffer = self._buffer[length:]
        return message

    async def _more(self) -> None:
        response = await self._heard.read()
        assert response is not aio.EOF, "the debugger hung up"
        self._buffer += response.data

    async def leave(self) -> None:
        """As an editor does; the worker goes on."""
        await self.ask("disconnect", terminateDebuggee=False)
        self._said.put_nowait(None)
        async with asyncio.timeout(20):
            while await self._heard.read() is not aio.EOF:
                pass


async def attached(pool: RunningPool, worker_id: str, line: int) -> Dap:
    """A client that has set a breakpoint."""
    dap = Dap(pool, worker_id)
    await dap.ask("initialize", adapterID="test", pathFormat="path", linesStartAt1=True, columnsStartAt1=True)
    mappings = [{"localRoot": PROJECT, "remoteRoot": "/agent/app"}]
    attaching = dap.say("attach", justMyCode=True, pathMappings=mappings)
    await dap.event("initialized")
    breakpoints = await dap.ask(
        "setBreakpoints", source={"path": f"{PROJECT}/tester.py"}, breakpoints=[{"line": line}]
    )
    assert breakpoints["breakpoints"][0]["verified"]
    await dap.ask("configurationDone")
    await dap.answer(attaching)
    return dap


@pytest.mark.root
@pytest.mark.parametrize("entrypoint", list(LINE))
async def test_a_breakpoint_is_hit_read_and_left(pool: RunningPool, entrypoint: str) -> None:
    archive = harness.project("tester", code=CODE).replace(b"tester:Tester", entrypoint.encode().ljust(13))
    await pool.build(archive)
    checks = pb.HealthCheck(interval_seconds=0.2, timeout_seconds=0.2, retries=1)
    checks.failure_action = pb.HEALTH_FAILURE_ACTION_RESTART
    running = await pool.run("tester:1.0.0", serving=DEBUG, health_check=checks)
    assert running.settings.health_check.failure_action == pb.HEALTH_FAILURE_ACTION_IGNORE
    worker = await pool.worker("tester-01")
    assert not has_debugger(worker.pid)
    dap = await attached(pool, "tester-01", LINE[entrypoint])
    call = asyncio.create_task(harness.generate(worker.address, "hello", timeout_s=30))
    stopped = await dap.event("stopped")
    assert stopped["reason"] == "breakpoint"
    assert has_debugger(worker.pid)
    frames = (await dap.ask("stackTrace", threadId=stopped["threadId"]))["stackFrames"]
    assert (frames[0]["line"], frames[0]["name"]) == (LINE[entrypoint], "generate")
    assert frames[0]["source"]["path"] == f"{PROJECT}/tester.py"
    scopes = (await dap.ask("scopes", frameId=frames[0]["id"]))["scopes"]
    variables = (await dap.ask("variables", variablesReference=scopes[0]["variablesReference"]))["variables"]
    assert {each["name"]: each["value"] for each in variables}["loud"] == "'HELLO'"
    assert not call.done()
    if entrypoint == "tester:Quiet":
        # Its event loop stands, too, and nothing is done about that.
        await pool.until("tester-01", lambda each: each.state == pb.WORKER_STATE_UNHEALTHY)
    await dap.ask("continue", threadId=stopped["threadId"])
    assert await call == "HELLO!"
    await pool.until("tester-01", lambda each: each.state == pb.WORKER_STATE_READY)
    await dap.leave()
    assert await harness.generate(worker.address, "again", timeout_s=30) == "AGAIN!"
    await (await attached(pool, "tester-01", LINE[entrypoint])).leave()
    assert (await pool.worker("tester-01")).pid == worker.pid


def has_debugger(pid: int) -> bool:
    """Whether debugpy was imported there: a part of it is compiled, and so is mapped."""
    return "pydevd" in Path(f"/proc/{pid}/maps").read_text()


async def refusal(pool: RunningPool, request: pb.DebugWorkerRequest) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(aio.AioRpcError) as caught:
        async for _ in pool.pool.DebugWorker(iter([request]), timeout=20):
            pass
    return caught.value.code(), caught.value.details() or ""


async def test_who_is_not_let_in(pool: RunningPool) -> None:
    code, said = await refusal(pool, pb.DebugWorkerRequest())
    assert (code, "name a worker" in said) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    code, said = await refusal(pool, pb.DebugWorkerRequest(worker_id="echo-01"))
    assert code is grpc.StatusCode.NOT_FOUND
    await pool.run("echo")
    code, said = await refusal(pool, pb.DebugWorkerRequest(worker_id="echo-01"))
    assert (code, "does not run with debug" in said) == (grpc.StatusCode.FAILED_PRECONDITION, True)
    await pool.stop("echo")
    await pool.run("echo", agent="open", serving=DEBUG, network=pb.NETWORK_MODE_HOST)
    code, said = await refusal(pool, pb.DebugWorkerRequest(worker_id="open-01"))
    assert (code, "no network of its own" in said) == (grpc.StatusCode.FAILED_PRECONDITION, True)


@pytest.mark.root
async def test_a_worker_that_was_taken_over_says_how_to_get_another(pool: RunningPool) -> None:
    await pool.run("echo", serving=DEBUG)
    await pool.kill()
    await pool.start()
    await pool.until("echo-01", lambda worker: worker.state == pb.WORKER_STATE_READY)
    code, said = await refusal(pool, pb.DebugWorkerRequest(worker_id="echo-01"))
    assert (code, "agent restart echo-01" in said) == (grpc.StatusCode.FAILED_PRECONDITION, True)
