"""The channels of an `AsyncClient`, and what each call on them has of deadline, metadata, repetition and errors."""

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
from grpc import aio

import agentruntime
from agentruntime import errors
from agentruntime._proto.uapi.v1 import agent_registry_pb2 as registry_pb2
from agentruntime._proto.uapi.v1 import agent_registry_pb2_grpc
from agentruntime.client import handshake, policy, repeat, target

# For a look at a connection: it is there or it is not.
_LOOK_S = 0.3


class Connection:
    """Channels to one target, one per agent that calls are bound to. gRPC itself shares their connection."""

    def __init__(self, to: target.Target) -> None:
        self.target = to
        self._channels: dict[str, aio.Channel] = {}
        self._closed = False

    def channel(self, agent: str) -> aio.Channel:
        if self._closed:
            raise errors.FailedPrecondition("this client is closed; make a new one")
        if agent not in self._channels:
            call_policy = policy.CallPolicy.of(self.target, agent)
            # A class per kind: grpc.aio sorts an interceptor under the first kind that it is an instance of.
            interceptors: list[aio.ClientInterceptor] = [
                kind(call_policy, self) for kind in (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream)
            ]
            options = policy.channel_options(self.target, agentruntime.__version__)
            encrypted = policy.credentials(self.target)
            if encrypted is None:
                channel = aio.insecure_channel(self.target.address, options, interceptors=interceptors)
            else:
                channel = aio.secure_channel(self.target.address, encrypted, options, interceptors=interceptors)
            self._channels[agent] = channel
        return self._channels[agent]

    async def connected(self, within_s: float) -> bool:
        """Whether the gateway is reached within so many seconds."""
        try:
            async with asyncio.timeout(within_s):
                await self.channel("").channel_ready()
        except TimeoutError:
            return False
        return True

    async def may_repeat(self, attempts: repeat.Attempts, agent: str) -> bool:
        """What the registry says of repeating a call that a worker may have seen; False where it says nothing."""
        registry: agent_registry_pb2_grpc.AgentRegistryAsyncStub = agent_registry_pb2_grpc.AgentRegistryStub(
            self.channel("")
        )
        left_s = attempts.left_s(time.monotonic())
        timeout_s = math.inf if left_s is None else left_s
        try:
            if agent:
                request = registry_pb2.GetAgentRequest(agent_id=agent)
                return bool((await registry.GetAgent(request, timeout=timeout_s)).agent.idempotent)
            listed = await registry.ListAgents(registry_pb2.ListAgentsRequest(), timeout=timeout_s)
        except errors.AgentError:
            return False
        return repeat.may_repeat(listed.agents, attempts.service)

    async def close(self) -> None:
        self._closed = True
        while self._channels:
            await self._channels.popitem()[1].close()


class _Call:
    """One call with all its attempts."""

    def __init__(
        self,
        of: policy.CallPolicy,
        connection: Connection,
        given: aio.ClientCallDetails,
        metadata: policy.Metadata,
        *,
        streamed: bool = False,
    ) -> None:
        self._given = given
        self._connection = connection
        self._metadata = metadata
        self._waits = given.wait_for_ready is not False
        method = given.method.decode() if isinstance(given.method, bytes) else given.method
        self.attempts = repeat.Attempts(
            method,
            of.deadline_s(given.timeout),
            time.monotonic(),
            repeatable=self._waits and not streamed,
        )

    def details(self) -> aio.ClientCallDetails:
        """Those of the next attempt."""
        return aio.ClientCallDetails(
            method=self._given.method,
            timeout=self.attempts.left_s(time.monotonic()),
            metadata=aio.Metadata(*self._metadata),
            credentials=self._given.credentials,
            wait_for_ready=self._waits,
        )

    async def typed(self, error: grpc.RpcError) -> errors.AgentError:
        """The error as `agentruntime.errors` has it."""
        timeout_s, elapsed_s = self.attempts.timeout_s, self.attempts.elapsed_s(time.monotonic())
        typed = policy.failure(error, timeout_s, elapsed_s, self.attempts.failure)
        if timeout_s is None or not isinstance(typed, errors.DeadlineExceeded):
            return typed
        if not await self._connection.connected(_LOOK_S):
            return await asyncio.to_thread(handshake.not_connected, self._connection.target, timeout_s)
        return typed

    async def until_next(self, error: grpc.RpcError) -> None:
        """Waits until the call may be made again.

        Raises:
            AgentError: it may not.
        """
        typed = await self.typed(error)
        again = self.attempts.again(typed, time.monotonic(), random.random())  # noqa: S311 — because nobody gains by guessing it
        if again is None:
            raise typed from error
        await asyncio.sleep(again.delay_s)
        if again.ask and not await self._connection.may_repeat(self.attempts, policy.agent_in(self._metadata)):
            raise typed from error


class _Interceptor:
    """Applies a `CallPolicy`, and repeats what may be."""

    def __init__(self, of: policy.CallPolicy, connection: Connection) -> None:
        self._policy = of
        self._connection = connection

    async def _call(self, given: aio.ClientCallDetails, *, streamed: bool = False) -> _Call:
        # grpc.aio's Metadata yields its pairs when iterated, which its stub does not say.
        own = cast("Any", given.metadata)
        if isinstance(self._policy.token, str):
            metadata = self._policy.metadata(own)
        else:
            # The trace goes along into the thread.
            metadata = await asyncio.to_thread(self._policy.metadata, own)
        return _Call(self._policy, self._connection, given, metadata, streamed=streamed)


class _UnaryUnary(_Interceptor, aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await _answered(continuation, await self._call(client_call_details), request)


class _UnaryStream(_Interceptor, aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        call = await self._call(client_call_details)
        # The call is made here: grpc.aio wants to cancel it even if nobody reads the stream.
        attempt = await continuation(call.details(), request)
        while call.attempts.repeatable:
            messages = aiter(attempt)
            try:
                first = [await anext(messages)]
            except StopAsyncIteration:
                first = []
            except grpc.RpcError as error:
                await call.until_next(error)
                attempt = await continuation(call.details(), request)
                continue
            return _streamed(messages, first, call)
        return _streamed(attempt, [], call)


class _StreamUnary(_Interceptor, aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await _answered(continuation, await self._call(client_call_details, streamed=True), request_iterator)


class _StreamStream(_Interceptor, aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        call = await self._call(client_call_details, streamed=True)
        return _streamed(await continuation(call.details(), request_iterator), [], call)


async def _answered(continuation: Any, call: _Call, request: Any) -> Any:
    """The attempt that has its answer."""
    while True:
        attempt = await continuation(call.details(), request)
        try:
            await attempt
        except grpc.RpcError as error:
            await call.until_next(error)
        else:
            return attempt


async def _streamed(messages: Any, first: list[Any], call: _Call) -> AsyncIterator[Any]:
    try:
        for message in first:
            yield message
        async for message in messages:
            yield message
    except grpc.RpcError as error:
        raise await call.typed(error) from error
