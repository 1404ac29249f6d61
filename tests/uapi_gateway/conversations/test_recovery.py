"""What is left in the middle is taken up by a worker, and how often one is asked."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime._proto.uapi.v1 import conversation_service_pb2_grpc as conversation_grpc
from agentruntime.errors import Unavailable
from agentruntime.interceptors import ServerInterceptor
from grpc import aio

from tests.uapi_gateway.conversations.memory import Holding, MemoryStore
from tests.uapi_gateway.conversations.test_log import KEY, append, begun, end, opened, over, running, said
from tests.waiting import eventually
from uapi_gateway.conversations import recovery as recovery_module
from uapi_gateway.conversations.log import EventLog
from uapi_gateway.conversations.recovery import Recovery
from uapi_gateway.conversations.store import Key
from uapi_gateway.descriptors import CONVERSATIONS
from uapi_gateway.registry import Agent, Registry

_AGENT = Agent("a", (CONVERSATIONS,), ())


class _Worker(conversation_grpc.ConversationServiceServicer):
    """Opens what it is asked for, and finishes it; unless it is away."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self.away = 0
        # Of that agent, nothing is answered before.
        self.stuck, self.stuck_agent = asyncio.Event(), ""
        self.asked: list[dict[str, Any]] = []

    async def GetConversation(self, request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
        self.asked.append(dict(context.invocation_metadata() or ()))
        if self.asked[-1]["x-uapi-agent"] == self.stuck_agent:
            await self.stuck.wait()
            raise Unavailable("away")
        if self.away:
            self.away -= 1
            raise Unavailable("away")
        hold = await opened(self._log, Holding("a-02"))
        await append(self._log, hold, *(over(message_id) for message_id in list(hold.unended)))
        self._log.release(hold)
        return proto.GetConversationResponse()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery_module, "RETURN_S", 0.05)


@asynccontextmanager
async def _recovering(
    tmp_path: Path, registry: Registry, kept: MemoryStore | None = None
) -> AsyncIterator[tuple[EventLog, MemoryStore, Recovery, _Worker]]:
    recoveries: list[Recovery] = []
    async with (
        aio.insecure_channel(f"unix:{tmp_path}/w") as channel,
        running(kept, lambda log: recoveries.append(Recovery(log, registry, channel))) as (log, store),
    ):
        worker = _Worker(log)  # type: ignore[abstract]  # nothing else of it is called
        server = aio.server(interceptors=[ServerInterceptor()])
        conversation_grpc.add_ConversationServiceServicer_to_server(worker, server)
        server.add_insecure_port(f"unix:{tmp_path}/w")
        await server.start()
        task = asyncio.create_task(recoveries[0].run())
        try:
            yield log, store, recoveries[0], worker
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await server.stop(None)


def _registry(agent: Agent = _AGENT) -> Registry:
    registry = Registry()
    registry.put_pool_agent(agent)
    return registry


def _status(store: MemoryStore) -> Callable[[], bool]:
    return lambda: store.kept[KEY].messages["m"].status == proto.MESSAGE_STATUS_COMPLETED


async def _left(log: EventLog) -> None:
    holder = Holding()
    hold = await opened(log, holder)
    await append(log, hold, said("m"), begun("m"))
    end(log, holder, hold)


async def test_what_a_lost_worker_left_is_taken_up_on_behalf_of_whose_it_is(tmp_path: Path) -> None:
    async with _recovering(tmp_path, _registry()) as (log, store, recovery, worker):
        await _left(log)
        await eventually(_status(store))
        await eventually(lambda: not recovery.waiting)
        (asked,) = worker.asked
        assert {key: asked[key] for key in asked if key.startswith("x-uapi")} == {
            "x-uapi-agent": "a",
            "x-uapi-conversation": "first",
            "x-uapi-principal": "local",
            "x-uapi-caller-granted": "1",
        }


async def test_what_was_left_when_the_gateway_ended_is_taken_up(tmp_path: Path) -> None:
    store = MemoryStore()
    async with running(store) as (log, _):
        await _left(log)
    async with _recovering(tmp_path, _registry(), store) as (_, _, _, worker):
        await eventually(_status(store))
        assert len(worker.asked) == 1


async def test_a_worker_is_asked_again_until_it_answers(tmp_path: Path) -> None:
    async with _recovering(tmp_path, _registry()) as (log, store, _, worker):
        worker.away = 3
        await _left(log)
        await eventually(_status(store))
        assert len(worker.asked) == 4


async def test_what_somebody_opens_in_time_nobody_is_asked_for(tmp_path: Path) -> None:
    async with _recovering(tmp_path, _registry()) as (log, _, recovery, worker):
        await _left(log)
        hold = await opened(log, Holding("a-02"))
        await eventually(lambda: not recovery.waiting)
        await append(log, hold, over("m"))
        log.release(hold)
        await eventually(lambda: not log.figures.open)
        assert not worker.asked


async def test_an_agent_that_was_stopped_is_left_alone_until_it_runs(tmp_path: Path) -> None:
    registry = _registry(replace(_AGENT, stopped=True))
    async with _recovering(tmp_path, registry) as (log, store, recovery, worker):
        await _left(log)
        await asyncio.sleep(0.3)
        assert not worker.asked
        assert recovery.waiting == 1
        registry.put_pool_agent(replace(_AGENT, asleep=True))
        await eventually(_status(store))


async def test_what_was_deleted_meanwhile_is_forgotten(tmp_path: Path) -> None:
    registry = _registry(replace(_AGENT, stopped=True))
    async with _recovering(tmp_path, registry) as (log, _, recovery, worker):
        await _left(log)
        await log.delete(KEY)
        registry.put_pool_agent(_AGENT)
        await eventually(lambda: not recovery.waiting)
        assert not worker.asked


async def test_an_agent_that_never_answers_keeps_nobody_elses_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery_module, "_TURN_S", 0.05)
    registry = _registry()
    registry.put_pool_agent(replace(_AGENT, agent_id="broken"))
    async with _recovering(tmp_path, registry) as (log, store, _, worker):
        worker.stuck, worker.stuck_agent = asyncio.Event(), "broken"
        holder = Holding()
        for number in range(20):
            key = Key("local", "broken", str(number))
            hold = await opened(log, holder, key)
            await append(log, hold, said("m"))
            log.release(hold)
        await eventually(lambda: len(worker.asked) == 4)
        await _left(log)
        await eventually(_status(store))
        assert [asked["x-uapi-agent"] for asked in worker.asked] == ["broken"] * 4 + ["a"]
        worker.stuck.set()
        await eventually(lambda: len({asked["x-uapi-conversation"] for asked in worker.asked}) == 21)
