"""Models that agents use: who may, how the model's agent comes to run, and that hanging up ends the generation."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from agentruntime import errors, status
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool
from agentruntime._proto.uapi.v1 import model_service_pb2 as proto
from agentruntime._proto.uapi.v1 import model_service_pb2_grpc
from agentruntime._proto.uapi.v1 import text_generation_pb2 as text
from agentruntime.interceptors import ServerInterceptor
from grpc import aio

from tests.waiting import eventually
from uapi_gateway.access import headers
from uapi_gateway.kernel import caller, system_calls
from uapi_gateway.kernel.audit import AuditLog
from uapi_gateway.kernel.audit_store import Wanted
from uapi_gateway.kernel.models import ModelService
from uapi_gateway.registry import Agent, Lease, Permissions, Registry


class Platform:
    """A pool, and the agent of the model."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.runs: list[pool.RunAgentRequest] = []
        self.fails: errors.AgentError | None = None
        self.goes_on = asyncio.Event()
        self.goes_on.set()
        self.metadata: dict[str, Any] = {}
        self.ended = asyncio.Event()

    async def RunAgent(self, request: pool.RunAgentRequest, _context: Any) -> pool.RunAgentResponse:
        self.runs.append(request)
        await self.goes_on.wait()
        if self.fails:
            raise self.fails
        self.registry.put_pool_agent(Agent(request.agent, (), ()))
        return pool.RunAgentResponse()

    async def StreamText(self, request: text.StreamTextRequest, context: Any) -> AsyncIterator[Any]:
        self.metadata = dict(context.invocation_metadata())
        if self.fails:
            raise self.fails
        try:
            for count, word in enumerate(request.prompt.split(), 1):
                yield text.StreamTextResponse(text=word, tokens_used=count)
                if word == "wait":
                    await asyncio.Event().wait()
        finally:
            self.ended.set()


def _handlers(service: str, **methods: Any) -> Any:
    return grpc.method_handlers_generic_handler(service, methods)


def _unary(behaviour: Any, request: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(behaviour, request.FromString, lambda each: each.SerializeToString())


def _stream(behaviour: Any, request: Any) -> Any:
    return grpc.unary_stream_rpc_method_handler(behaviour, request.FromString, lambda each: each.SerializeToString())


@pytest_asyncio.fixture
async def platform(tmp_path: Path) -> AsyncIterator[tuple[Platform, Any, AuditLog]]:
    """What is asked behind the service, a channel to it, and the audit log."""
    registry = Registry()
    registry.put_pool_agent(Agent("thinker", (), (), permissions=Permissions(models=("*",))))
    registry.put_pool_agent(Agent("other", (), (), permissions=Permissions(models=("large",))))
    behind, audit = Platform(registry), AuditLog(tmp_path / "audit.db")
    server = aio.server(interceptors=[ServerInterceptor()])
    # They have the methods that are called.
    server.add_generic_rpc_handlers(
        (
            _handlers("uapi.v1.AgentPool", RunAgent=_unary(behind.RunAgent, pool.RunAgentRequest)),
            _handlers("uapi.v1.TextGenerationService", StreamText=_stream(behind.StreamText, text.StreamTextRequest)),
        )
    )
    server.add_insecure_port(f"unix:{tmp_path}/b")

    async def routed(_agent: str, _longest_s: float) -> bool:
        return True

    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(audit.close)
        to = await stack.enter_async_context(aio.insecure_channel(f"unix:{tmp_path}/b"))
        kernel = system_calls.server(
            registry, audit, ModelService(registry, audit, pool=to, agents=to, routed=routed)
        )
        kernel.add_insecure_port(f"unix:{tmp_path}/k")
        for each in (server, kernel):
            await each.start()
            stack.push_async_callback(each.stop, None)
        channel = await stack.enter_async_context(aio.insecure_channel(f"unix:{tmp_path}/k"))
        yield behind, model_service_pb2_grpc.ModelServiceStub(channel), audit


def generate(stub: Any, prompt: str, model: str = "smollm2", agent: str = "thinker") -> Any:
    request = proto.GenerateRequest(model=model, prompt=prompt)
    return stub.Generate(request, metadata=((caller.AGENT, agent), (caller.WORKER, f"{agent}-01")), timeout=20)


async def refused(call: Any) -> errors.AgentError:
    with pytest.raises(aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return status.decode(caught.value)


async def recorded(audit: AuditLog) -> list[tuple[str, str, str, str]]:
    records = await audit.read(Wanted())
    return [(each.entry.principal, each.entry.action, each.entry.target, each.entry.outcome) for each in records]


async def test_the_models_agent_is_begun_once_and_says_what_it_generates(platform: Any) -> None:
    behind, stub, audit = platform
    behind.goes_on.clear()
    calls = [generate(stub, "a b"), generate(stub, "c")]
    reading = [asyncio.ensure_future(_said(call)) for call in calls]
    await eventually(lambda: bool(behind.runs))
    behind.goes_on.set()
    assert await asyncio.gather(*reading) == [[("a", 1), ("b", 2)], [("c", 1)]]
    assert await _said(generate(stub, "d")) == [("d", 1)]
    (run,) = behind.runs
    assert (run.agent, run.image) == ("model-smollm2", "text-generator:latest")
    assert behind.metadata["x-uapi-agent"] == "model-smollm2"
    # The model's agent need not be among those that the caller may call.
    assert (behind.metadata[headers.PRINCIPAL], behind.metadata[headers.GRANTED]) == ("agent:thinker", "1")
    assert await recorded(audit) == [("agent:thinker", "AgentPool/RunAgent", "model-smollm2", "allowed")]


async def _said(call: Any) -> list[tuple[str, int]]:
    return [(piece.text, piece.tokens) async for piece in call]


async def test_what_is_not_permitted_is_refused_and_recorded_before_anything_else(platform: Any) -> None:
    behind, stub, audit = platform
    error = await refused(generate(stub, "a", agent="other"))
    assert isinstance(error, errors.PermissionDenied)
    assert "`permissions: {models: [large, smollm2]}`" in error.message
    missing = await refused(generate(stub, "a", model="large", agent="other"))
    assert (type(missing), missing.reason) == (errors.NotFound, "MODEL_NOT_FOUND")
    assert behind.runs == []
    assert await recorded(audit) == [("agent:other", "model", "smollm2", "denied")]


async def test_hanging_up_ends_the_generation(platform: Any) -> None:
    behind, stub, _ = platform
    call = generate(stub, "wait more")
    assert (await call.read()).text == "wait"
    call.cancel()
    async with asyncio.timeout(10):
        await behind.ended.wait()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (errors.AgentFailed("it failed\nTraceback\nModuleNotFoundError: No module 'x'"), "No module 'x'; install"),
        (errors.AgentStopped("agent 'model-smollm2' is stopped; start it"), "cannot run: agent 'model-smollm2' is"),
    ],
)
@pytest.mark.parametrize("begun", [False, True])
async def test_a_model_that_cannot_run_says_why(
    platform: Any, error: errors.AgentError, says: str, begun: bool
) -> None:
    behind, stub, _ = platform
    if begun:
        behind.registry.put_pool_agent(Agent("model-smollm2", (), ()))
    behind.fails = error
    found = await refused(generate(stub, "a"))
    assert (type(found), found.reason) == (errors.FailedPrecondition, "MODEL_NOT_READY")
    assert says in found.message
    assert "\n" not in found.message
    # And the next call tries again.
    behind.fails = None
    assert await _said(generate(stub, "a")) == [("a", 1)]


async def test_one_that_registered_itself_from_outside_is_not_asked(platform: Any) -> None:
    behind, stub, _ = platform
    behind.registry.restore(replace(Agent("model-smollm2", (), ()), lease=Lease("l", 60.0, 0.0)), now=0.0)
    assert await _said(generate(stub, "a")) == [("a", 1)]
    assert len(behind.runs) == 1


async def test_whatever_else_its_agent_answers_is_passed_on(platform: Any) -> None:
    behind, stub, _ = platform
    behind.registry.put_pool_agent(Agent("model-smollm2", (), ()))
    behind.fails = errors.InvalidArgument("prompt must not be empty")
    with pytest.raises(aio.AioRpcError) as caught:
        await generate(stub, "").read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
