"""The relay's decisions, and what it keeps of a call."""

from collections.abc import AsyncIterator

import pytest
from agentruntime.errors import AgentError, AgentNotFound, AgentNotReady, AgentStopped

from tests.uapi_gateway.test_registry import agent
from uapi_gateway.registry import Agent, Registry
from uapi_gateway.relay import LONGEST_REQUEST_BYTES, Kept, Relay, decide


@pytest.mark.parametrize(
    ("known", "expired", "kind", "words"),
    [
        (None, False, AgentNotFound, "agent 'a' not found"),
        (agent("a", stopped=True, image="a:1"), False, AgentStopped, "start it with: agent run a:1"),
        (agent("a", stopped=True, image="b:1"), False, AgentStopped, "start it with: agent run b:1 --name a"),
        (
            agent("a", replicas=0, image="a:1"),
            False,
            AgentNotReady,
            "0 replicas; `agent run a:1 --replicas 1` starts one",
        ),
        (
            agent("a", replicas=0, image="b:1"),
            False,
            AgentNotReady,
            "`agent run b:1 --name a --replicas 1` starts one",
        ),
        (agent("a", "a-01", ready=False), True, AgentNotReady, "no worker is ready yet"),
        (agent("a", "a-01"), True, AgentNotReady, "cannot be reached"),
    ],
)
def test_refusals(known: Agent | None, expired: bool, kind: type[AgentError], words: str) -> None:
    registry = Registry()
    if known:
        registry.put_pool_agent(known)
    error = decide(registry.find("a"), "a", expired=expired)
    assert isinstance(error, kind)
    assert error.message.endswith(words)


def test_calls_to_an_agent_that_may_come_wait() -> None:
    registry = Registry()
    registry.put_pool_agent(agent("a", "a-01", ready=False))
    assert decide(registry.find("a"), "a", expired=False) is None


async def test_no_patience_is_no_wait() -> None:
    registry = Registry()
    registry.put_pool_agent(agent("a", "a-01"))  # said to be ready, and nobody listens at /a-01
    with pytest.raises(AgentNotReady):
        await Relay(registry, wait_s=0).endpoint("a", None)
    with pytest.raises(AgentNotReady):
        await Relay(registry, wait_s=60).endpoint("a", 0.01)


async def messages(*every: bytes) -> AsyncIterator[bytes]:
    for each in every:
        yield each


async def test_a_call_can_be_sent_again_as_far_as_it_was_read() -> None:
    kept = Kept(messages(b"1", b"2", b"3"))
    first = aiter(kept)
    assert [await anext(first), await anext(first)] == [b"1", b"2"]
    assert kept.complete
    assert [each async for each in kept] == [b"1", b"2", b"3"]


async def test_a_large_call_is_not_kept() -> None:
    kept = Kept(messages(b"x" * LONGEST_REQUEST_BYTES, b"y"))
    assert len([each async for each in kept]) == 2
    assert not kept.complete
