"""Conversations of `Client` and of `AsyncClient`, against a server whose streams break."""

import asyncio
import math
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from agentruntime import AsyncClient, Client, errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.client.conversations import Conversation, ResponseHandle
from agentruntime.client.conversations_aio import AsyncConversation, AsyncResponseHandle
from agentruntime.conversation import ActorId, ChatMessage, Part, RequestStatus

from tests.agentruntime.conversation_service import Log
from tests.agentruntime.platform_services import Record, serving
from tests.waiting import eventually, until

LOST = errors.Unavailable("the worker ended", reason="WORKER_LOST")
DRAINING = errors.WorkerDraining("try another one")
# The message, its attempt, two chunks, the completion.
KINDS = ["message", "attempt", "chunk", "chunk", "completion"]


@pytest.fixture
def log(record: Record) -> Log:
    return record.log


@pytest.fixture
def client(endpoint: str) -> Iterator[Client]:
    with Client(endpoint, timeout_s=20) as made:
        yield made


def kinds(events: list[proto.Event]) -> list[str | None]:
    return [event.WhichOneof("content") for event in events]


def methods(log: Log) -> list[str]:
    return [method for method, _ in log.calls]


def test_a_message_gets_its_reply(client: Client, log: Log) -> None:
    conversation = client.conversation("helper", "first")
    assert conversation.actor == ActorId("helper", "first")
    handle = conversation.send("hello there", message_id="m-1", when_busy="reject")
    reply = handle.get_response()
    assert (reply.text, reply.role, reply.message_id) == ("HELLO THERE ", "assistant", "m-1")
    assert handle.get_response() == reply
    assert handle.status() is RequestStatus.COMPLETED
    ((method, metadata),) = log.calls
    assert (method, metadata["x-uapi-agent"], metadata["x-uapi-conversation"]) == ("StreamMessage", "helper", "first")
    assert log.events["first"][0].message.parts[0].text == "hello there"


def test_updates_are_there_for_everybody_who_asks(client: Client) -> None:
    handle = client.conversation("helper").send(ChatMessage.of([Part(text="a"), " b"]))
    assert kinds(list(handle.watch_updates())) == KINDS
    assert handle.get_response().text == "A B "
    assert [event.sequence for event in handle.watch_updates()] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("broken", [LOST, DRAINING, None], ids=["lost", "draining", "ended"])
@pytest.mark.parametrize("after", range(5))
def test_it_goes_on_after_a_break_anywhere(
    client: Client, log: Log, after: int, broken: errors.AgentError | None
) -> None:
    log.breaks = [(after, broken)]
    log.repeats = True
    handle = client.conversation("helper", "first").send("hello there")
    assert [event.sequence for event in handle.watch_updates()] == [1, 2, 3, 4, 5]
    assert kinds(log.events["first"]) == KINDS
    resumed = [request for request in methods(log) if request != "StreamMessage"]
    assert resumed == ([] if after == 0 else ["WatchConversation"])


def test_it_goes_on_as_often_as_it_must(client: Client, log: Log) -> None:
    log.breaks = [(0, LOST), (2, LOST), (0, LOST), (1, LOST), (1, None), (1, LOST)]
    assert kinds(list(client.conversation("helper", "first").send("hello there").watch_updates())) == KINDS
    assert methods(log)[:2] == ["StreamMessage", "StreamMessage"]
    assert set(methods(log)[2:]) == {"WatchConversation"}
    # By one id.
    assert len({event.message_id for event in log.events["first"]}) == 1


def test_a_break_after_the_last_event_is_none(client: Client, log: Log) -> None:
    log.breaks = [(5, LOST)]
    assert client.conversation("helper", "first").send("hello there").get_response().text == "HELLO THERE "
    assert methods(log) == ["StreamMessage"]


def test_the_same_message_again_is_the_same(client: Client, log: Log) -> None:
    conversation = client.conversation("helper", "first")
    for _ in range(2):
        assert conversation.send("hello there", message_id="m-1").get_response().text == "HELLO THERE "
    assert conversation.response("m-1").get_response().text == "HELLO THERE "
    assert conversation.send(ChatMessage.of("x"), message_id="m-2").message_id == "m-2"
    assert kinds(log.events["first"])[: len(KINDS)] == KINDS
    assert len(log.of("first", "m-1")) == len(KINDS)


def test_a_failure_is_raised_as_its_class(client: Client) -> None:
    handle = client.conversation("helper").send("fail")
    for _ in range(2):
        with pytest.raises(errors.InvalidArgument, match="I do not like this") as failed:
            handle.get_response()
        assert failed.value.metadata == {"a": "b", "traceback": "at x"}
    assert handle.status() is RequestStatus.FAILED


def test_what_the_send_itself_fails_with(client: Client, log: Log) -> None:
    for error in (errors.ConversationBusy("busy"), errors.MessageAmbiguous("lost"), errors.NoConversations("none")):
        log.breaks = [(0, error)]
        with pytest.raises(type(error), match=error.message):
            client.conversation("helper", "first").send("x")
    assert not log.events


def test_cancel(client: Client, log: Log) -> None:
    handle = client.conversation("helper", "first").send("wait for me")
    assert handle.status() is RequestStatus.RUNNING
    waiting: list[BaseException] = []

    def wait() -> None:
        with pytest.raises(errors.Cancelled) as cancelled:
            handle.get_response()
        waiting.append(cancelled.value)

    thread = threading.Thread(target=wait)
    thread.start()
    assert handle.cancel() is RequestStatus.RUNNING
    thread.join(20)
    assert [error.args[0] for error in waiting] == ["the message was cancelled"]
    assert handle.status() is RequestStatus.CANCELLED


def test_time_that_runs_out_leaves_the_message_running(client: Client, log: Log) -> None:
    conversation = client.conversation("helper", "first")
    handle = conversation.send("wait", message_id="m-1", timeout_s=0.5)
    with pytest.raises(errors.DeadlineExceeded, match=r"not done within 0.5 s; the message goes on"):
        handle.get_response()
    log.release("first")
    assert conversation.response("m-1").get_response().text == "released"


def test_watching_a_whole_conversation(client: Client, log: Log) -> None:
    conversation = client.conversation("helper", "first")
    conversation.send("a b").get_response()
    assert [event.sequence for event in conversation.watch()] == [1, 2, 3, 4, 5]
    assert [event.sequence for event in conversation.watch(after_sequence=3)] == [4, 5]
    log.breaks = [(2, LOST), (1, None)]
    seen: list[int] = []
    for event in conversation.watch(follow=True):
        seen.append(event.sequence)
        if event.sequence == 5:
            conversation.send("c").get_response()
        if event.sequence == 9:
            break
    assert seen == list(range(1, 10))


def test_looking_and_deleting(client: Client, log: Log) -> None:
    conversation = client.conversation("helper", "first")
    conversation.send("wait", message_id="m-1")
    found = conversation.get()
    assert (found.conversation_id, found.messages[0].message_id) == ("first", "m-1")
    conversation.delete()
    for asks in (conversation.get, conversation.delete, lambda: next(conversation.watch())):
        with pytest.raises(errors.ConversationNotFound):
            asks()
    assert log.calls[-1][1]["x-uapi-conversation"] == "first"


def test_lists_hide_their_pages_and_name_no_agent(client: Client, log: Log) -> None:
    for number in range(5):
        log.append(f"c-{number}", "m", message=proto.ChatMessage())
    assert [each.conversation_id for each in client.conversations("helper")] == [f"c-{n}" for n in range(5)]
    assert methods(log) == ["ListConversations"] * 3
    assert not any("x-uapi-agent" in metadata or "x-uapi-conversation" in metadata for _, metadata in log.calls)


def test_ids_and_names_are_checked_before_anything_is_sent(client: Client, log: Log) -> None:
    for wrong in ("", "x" * 201, "ä", "a\nb"):
        with pytest.raises(errors.InvalidArgument):
            client.conversation("helper", wrong)
    with pytest.raises(errors.InvalidArgument, match="agent name"):
        client.conversation("Helper!")
    later: Any = "later"
    with pytest.raises(errors.InvalidArgument, match="queue, reject or interrupt"):
        client.conversation("helper").send("x", when_busy=later)
    assert client.conversation("helper").id != client.conversation("helper").id
    assert log.calls == []


def test_a_gateway_that_stays_away() -> None:
    says = r"nothing answered at 127.0.0.1:1 within 0.5 s"
    with Client("127.0.0.1:1", timeout_s=0.5) as client, pytest.raises(errors.Unavailable, match=says):
        client.conversation("helper").send("x")


async def test_asynchronously(endpoint: str, log: Log) -> None:
    async with AsyncClient(endpoint, timeout_s=20) as client:
        conversation = client.conversation("helper", "first")
        assert conversation.actor == ActorId("helper", "first")
        for after in range(6):
            log.breaks = [(after, LOST), (1, None)]
            handle = await conversation.send("hello there")
            assert kinds([event async for event in handle.watch_updates()]) == KINDS
            assert (await handle.get_response()).text == "HELLO THERE "
            assert await handle.status() is RequestStatus.COMPLETED
        assert [event.sequence async for event in conversation.watch(after_sequence=20)] == list(range(21, 31))
        assert (await conversation.get()).last_sequence == 30
        assert [each.conversation_id async for each in client.conversations()] == ["first"]
        with pytest.raises(errors.InvalidArgument, match="I do not like this"):
            await (await conversation.send("fail")).get_response()
        await conversation.delete()
        with pytest.raises(errors.ConversationNotFound):
            await conversation.get()


async def test_tasks_share_a_handle_and_are_cancelled_over_it(endpoint: str, log: Log) -> None:
    async with AsyncClient(endpoint, timeout_s=20) as client:
        handle = await client.conversation("helper", "first").send("wait for me")
        seen: list[int] = []

        async def watch() -> None:
            async for event in handle.watch_updates():
                seen.append(event.sequence)

        first, second = asyncio.create_task(watch()), asyncio.create_task(handle.get_response())
        await eventually(lambda: len(seen) == 5)
        # One of them reads for both.
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert await handle.status() is RequestStatus.RUNNING
        await asyncio.to_thread(log.release, "first")
        assert (await second).text == "released"
        assert [event.sequence async for event in handle.watch_updates()] == list(range(1, 7))


async def test_cancel_and_time_asynchronously(endpoint: str, log: Log) -> None:
    async with AsyncClient(endpoint, timeout_s=20) as client:
        conversation = client.conversation("helper", "first")
        handle = await conversation.send("wait", timeout_s=0.5)
        with pytest.raises(errors.DeadlineExceeded, match="goes on"):
            await handle.get_response()
        again = conversation.response(handle.message_id, timeout_s=math.inf)
        assert await again.cancel() is RequestStatus.RUNNING
        with pytest.raises(errors.Cancelled):
            await again.get_response()
    async with AsyncClient("127.0.0.1:1", timeout_s=0.5) as client:
        with pytest.raises(errors.Unavailable, match="nothing answered"):
            await client.conversation("helper").send("x")


def test_both_clients_offer_the_same() -> None:
    for one, other in ((Conversation, AsyncConversation), (ResponseHandle, AsyncResponseHandle)):
        assert public(one) == public(other)


def public(of: type) -> dict[str, Any]:
    return {name: list(each.__annotations__) for name, each in vars(of).items() if callable(each) and name[0] != "_"}


def test_a_watcher_that_hangs_up_ends_its_call(client: Client, log: Log) -> None:
    log.append("first", "m", message=proto.ChatMessage())
    watcher: Any = client.conversation("helper", "first").watch(follow=True)
    assert next(watcher).sequence == 1
    watcher.close()
    until(lambda: log.left == ["WatchConversation"])


def test_a_server_that_ends_and_comes_back(record: Record, log: Log) -> None:
    with ExitStack() as clients:
        with serving(record) as address:
            client = clients.enter_context(Client(address, timeout_s=20))
            handle = client.conversation("helper", "first").send("wait for me")
            updates = handle.watch_updates()
            assert kinds([next(updates) for _ in range(3)]) == ["message", "attempt", "chunk"]
        with serving(record, int(address.rpartition(":")[2])):
            log.release("first")
            assert kinds(list(updates)) == ["chunk", "chunk", "completion"]
    assert methods(log) == ["StreamMessage", "WatchConversation"]
