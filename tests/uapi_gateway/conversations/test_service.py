"""Who reads, cancels and deletes which conversations, and what is written down of it."""

from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from agentruntime import status
from agentruntime._proto.uapi.v1 import access_pb2 as access
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime._proto.uapi.v1 import conversation_service_pb2_grpc as conversation_grpc
from agentruntime.errors import AgentError
from agentruntime.interceptors import ServerInterceptor
from grpc import aio

from tests.uapi_gateway.conversations.memory import Holding, MemoryStore
from tests.uapi_gateway.conversations.test_log import append, begun, opened, running, said
from uapi_gateway.access.checks import Checks
from uapi_gateway.access.guard import Guard
from uapi_gateway.access.keys import Wanted, mint
from uapi_gateway.access.policy import Policy
from uapi_gateway.conversations.log import EventLog
from uapi_gateway.conversations.service import ConversationService
from uapi_gateway.conversations.store import Key
from uapi_gateway.kernel.audit import AuditLog
from uapi_gateway.kernel.audit_store import Wanted as Looked
from uapi_gateway.registry import Agent, Registry

_FAILURE = proto.Event(message_id="m", failure=proto.Failure(code=13, message="it broke", traceback="its code"))
_KEYS = {
    name: mint(Wanted(name, role, agents), 1e9)[1]
    for name, role, agents in (
        ("caller", access.ROLE_CALL, ("a",)),
        ("operator", access.ROLE_OPERATE, ("a",)),
        ("stranger", access.ROLE_CALL, ("b",)),
        ("everything", access.ROLE_OPERATE, ("*",)),
    )
}


@dataclass
class Served:
    stub: "conversation_grpc.ConversationServiceAsyncStub"
    log: EventLog
    store: MemoryStore
    registry: Registry
    audit: AuditLog

    async def written(self) -> list[tuple[str, str, str, str]]:
        found = await self.audit.read(Looked())
        return [(e.entry.principal, e.entry.action, e.entry.target, e.entry.outcome) for e in found]


@pytest_asyncio.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """The caller's conversation "mine" with agent a, in which a message has failed and another runs."""
    audit = AuditLog(tmp_path / "audit.db")
    policy = Policy(keys={key.key_id: key for key in _KEYS.values()})
    registry = Registry()
    registry.put_pool_agent(Agent("a", ("p.S",), ()))
    checks = Checks(registry, lambda: policy, audit)
    async with running() as (log, store):
        server = aio.server(interceptors=[ServerInterceptor(), Guard(checks)])
        service = ConversationService(log, registry, checks, audit)
        conversation_grpc.add_ConversationServiceServicer_to_server(service, server)
        server.add_insecure_port(f"unix:{tmp_path}/s")
        await server.start()
        hold = await opened(log, Holding(), Key("key:caller", "a", "mine"))
        await append(log, hold, said("m"), begun("m"), _FAILURE, said("n"), begun("n"))
        async with aio.insecure_channel(f"unix:{tmp_path}/s") as channel:
            yield Served(conversation_grpc.ConversationServiceStub(channel), log, store, registry, audit)
        await server.stop(None)
    await audit.close()


def _as(name: str) -> tuple[tuple[str, str], ...]:
    return (("x-uapi-principal", f"key:{name}"), ("x-uapi-caller-key", _KEYS[name].key_id))


async def _refused(call: Awaitable[object]) -> AgentError:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return status.decode(caught.value)


async def test_callers_have_their_own(served: Served) -> None:
    asked = proto.GetConversationRequest(conversation_id="mine", agent="a")
    found = (await served.stub.GetConversation(asked, metadata=_as("caller"))).conversation
    assert (found.conversation_id, [info.message_id for info in found.messages]) == ("mine", ["n"])
    watched = served.stub.WatchConversation(
        proto.WatchConversationRequest(conversation_id="mine", agent="a", after_sequence=2), metadata=_as("caller")
    )
    events = [response.event async for response in watched]
    assert [event.sequence for event in events] == [3, 4, 5]
    # What of the agent's code is none of a caller's.
    assert (events[0].failure.message, events[0].failure.traceback) == ("it broke", "")
    listed = await served.stub.ListConversations(proto.ListConversationsRequest(), metadata=_as("caller"))
    assert [each.conversation_id for each in listed.conversations] == ["mine"]
    cancel = proto.CancelMessageRequest(conversation_id="mine", agent="a")
    assert (await served.stub.CancelMessage(cancel, metadata=_as("caller"))).status == proto.MESSAGE_STATUS_RUNNING
    assert await served.written() == []
    await served.stub.DeleteConversation(
        proto.DeleteConversationRequest(conversation_id="mine", agent="a"), metadata=_as("caller")
    )
    assert not served.store.kept
    assert await served.written() == [
        ("key:caller", "ConversationService/DeleteConversation", "a key:caller mine", "allowed")
    ]


async def test_operators_have_those_of_their_agents_and_it_is_written_down(served: Served) -> None:
    asked = proto.GetConversationRequest(conversation_id="mine", agent="a", principal="key:caller")
    assert (await served.stub.GetConversation(asked, metadata=_as("operator"))).conversation.last_sequence == 5
    watched = served.stub.WatchConversation(
        proto.WatchConversationRequest(conversation_id="mine", agent="a", principal="key:caller", message_id="m"),
        metadata=_as("operator"),
    )
    assert [response.event.failure.traceback async for response in watched] == ["", "", "its code"]
    everything = proto.ListConversationsRequest(agent="a", all_principals=True)
    listed = await served.stub.ListConversations(everything, metadata=_as("operator"))
    assert [each.principal for each in listed.conversations] == ["key:caller"]
    assert await served.written() == [
        ("key:operator", "ConversationService/GetConversation", "a key:caller mine", "allowed"),
        ("key:operator", "ConversationService/WatchConversation", "a key:caller mine", "allowed"),
        ("key:operator", "ConversationService/ListConversations", "a", "allowed"),
    ]
    # An id alone is the operator's own.
    own = await _refused(
        served.stub.GetConversation(
            proto.GetConversationRequest(conversation_id="mine", agent="a"), metadata=_as("operator")
        )
    )
    assert own.reason == "CONVERSATION_NOT_FOUND"


async def test_others_have_none(served: Served) -> None:
    theirs = {"conversation_id": "mine", "agent": "a", "principal": "key:caller"}
    stub, as_stranger = served.stub, _as("stranger")
    for call in (
        stub.GetConversation(proto.GetConversationRequest(**theirs), metadata=as_stranger),
        stub.DeleteConversation(proto.DeleteConversationRequest(**theirs), metadata=as_stranger),
        stub.CancelMessage(proto.CancelMessageRequest(**theirs), metadata=as_stranger),
        # To call is not to operate.
        stub.ListConversations(proto.ListConversationsRequest(all_principals=True), metadata=_as("caller")),
        stub.ListConversations(proto.ListConversationsRequest(agent="a"), metadata=as_stranger),
        stub.GetConversation(proto.GetConversationRequest(conversation_id="x", agent="a"), metadata=as_stranger),
    ):
        assert (await _refused(call)).reason == "NOT_PERMITTED"
    listed = await stub.ListConversations(proto.ListConversationsRequest(), metadata=as_stranger)
    assert not listed.conversations
    assert {outcome for *_, outcome in await served.written()} == {"denied"}
    assert served.store.kept


async def test_what_is_for_an_agent_says_so(served: Served) -> None:
    for call in (
        served.stub.SendMessage(proto.SendMessageRequest(), metadata=_as("caller")),
        served.stub.GetConversation(proto.GetConversationRequest(conversation_id="mine"), metadata=_as("caller")),
    ):
        error = await _refused(call)
        assert (error.reason, "x-uapi-agent" in error.message) == ("AGENT_MISSING", True)
    with pytest.raises(aio.AioRpcError, match="x-uapi-agent"):
        await anext(aiter(served.stub.StreamMessage(proto.StreamMessageRequest(), metadata=_as("caller"))))


async def test_an_agent_that_nothing_is_known_of(served: Served) -> None:
    for id_, agent, reason in (
        ("other", "a", "CONVERSATION_NOT_FOUND"),
        ("mine", "b", "AGENT_NOT_FOUND"),
    ):
        for call in (
            served.stub.GetConversation(
                proto.GetConversationRequest(conversation_id=id_, agent=agent), metadata=_as("everything")
            ),
            served.stub.DeleteConversation(
                proto.DeleteConversationRequest(conversation_id=id_, agent=agent), metadata=_as("everything")
            ),
        ):
            assert (await _refused(call)).reason == reason
    nothing = await served.stub.ListConversations(
        proto.ListConversationsRequest(agent="a"), metadata=_as("everything")
    )
    assert not nothing.conversations
    listing = served.stub.ListConversations(proto.ListConversationsRequest(agent="b"), metadata=_as("everything"))
    assert (await _refused(listing)).reason == "AGENT_NOT_FOUND"
    # What was said stays when the agent goes.
    served.registry.remove_pool_agent("a")
    asked = proto.GetConversationRequest(conversation_id="other", agent="a")
    assert (await _refused(served.stub.GetConversation(asked, metadata=_as("caller")))).reason == (
        "CONVERSATION_NOT_FOUND"
    )
