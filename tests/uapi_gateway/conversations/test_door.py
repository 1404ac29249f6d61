"""What workers ask of the event log: what is answered, and what is refused."""

import asyncio
from dataclasses import replace

import pytest
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as conversations
from agentruntime._proto.uapi.v1 import event_log_pb2 as proto

from tests.uapi_gateway.conversations.at_door import Worker, appending, door_opened, opening, reading, working
from tests.uapi_gateway.conversations.test_log import begun, over, piece, said
from tests.waiting import eventually
from uapi_gateway.conversations import door as door_module
from uapi_gateway.conversations import frames
from uapi_gateway.registry import Agent, Endpoint, Registry


async def test_a_turn() -> None:
    async with door_opened() as (door, log, _), working(door) as worker:
        opened = await worker.open()
        assert (opened.last_sequence, len(opened.messages)) == (0, 0)
        reply = await worker.ask(appending(opened.token, said("m"), begun("m")))
        assert reply.appended.last_sequence == 2
        assert reply.appended.time_ns
        again = await worker.ask(appending(opened.token, said("m")))
        assert again.appended.known.message_id == "m"
        await worker.ask(appending(opened.token, piece("m", "hello"), over("m")))
        events = (await worker.ask(proto.LogRequest(read=reading(after_sequence=2)))).events
        assert [event.sequence for event in events.events] == [3, 4]
        backwards = (await worker.ask(proto.LogRequest(read=reading(limit=1, backwards=True)))).events
        assert [event.sequence for event in backwards.events] == [4]
        assert backwards.more
        found = await worker.ask(
            proto.LogRequest(get=conversations.GetConversationRequest(conversation_id="c", message_id="m"))
        )
        assert found.get.conversation.messages[0].status == conversations.MESSAGE_STATUS_COMPLETED
        listed = await worker.ask(proto.LogRequest(list=conversations.ListConversationsRequest()))
        assert [each.conversation_id for each in listed.list.conversations] == ["c"]
        release = proto.LogRequest(release=proto.ReleaseConversation(conversation_id="c", token=opened.token))
        assert (await worker.ask(release)).HasField("released")
        assert not log.figures.open
        refused = await worker.ask(appending(opened.token, piece("m")))
        assert refused.error.reason == "LEASE_LOST"
        deleted = proto.LogRequest(delete=conversations.DeleteConversationRequest(conversation_id="c"))
        assert (await worker.ask(deleted)).HasField("delete")
        missing = await worker.ask(proto.LogRequest(read=reading()))
        assert (missing.error.code, missing.error.reason) == (5, "CONVERSATION_NOT_FOUND")


async def test_who_only_goes_on_makes_no_conversation() -> None:
    async with door_opened() as (door, log, store), working(door) as worker:
        opening = proto.OpenConversation(conversation_id="c", existing=True)
        assert (await worker.ask(proto.LogRequest(open=opening))).error.reason == "CONVERSATION_NOT_FOUND"
        assert not log.figures.open
        assert not store.kept
        await worker.open()
        assert (await worker.ask(proto.LogRequest(open=opening))).HasField("opened")


async def test_many_appends_share_a_frame_both_ways() -> None:
    async with door_opened() as (door, _, store), working(door) as worker:
        tokens = {str(n): (await worker.open(str(n))).token for n in range(100)}
        frames, store.batches = worker.frames, []
        worker.send(*(appending(token, said("m"), conversation_id=name) for name, token in tokens.items()))
        assert all([(await worker.reply()).appended.last_sequence == 1 for _ in tokens])
        assert store.batches == [100]
        assert worker.frames - frames == 1


async def test_a_watch_goes_on_until_it_is_stopped_or_its_message_ends() -> None:
    async with door_opened() as (door, _, _), working(door) as worker, working(door, number=2) as watcher:
        token = (await worker.open()).token
        await worker.ask(appending(token, said("m")))
        whole, one = proto.LogRequest(watch=reading()), proto.LogRequest(watch=reading(message_id="m"))
        watcher.send(whole, one)
        for n in range(3):
            await worker.ask(appending(token, piece("m", str(n))))
        await worker.ask(appending(token, over("m")))
        seen: dict[int, list[int]] = {whole.id: [], one.id: []}
        while sum(map(len, seen.values())) < 11:
            reply = await watcher.reply()
            if reply.HasField("ended"):
                assert reply.id == one.id
                seen[one.id].append(0)
            seen[reply.id] += [event.sequence for event in reply.events.events]
        assert seen == {whole.id: [1, 2, 3, 4, 5], one.id: [1, 2, 3, 4, 5, 0]}
        await watcher.ask(proto.LogRequest(stop=whole.id))
        await worker.ask(appending(token, said("n")))
        await asyncio.sleep(0.05)
        assert watcher.replies.empty()


async def test_leases_end_with_their_connection_and_what_is_known_of_the_worker_is_told() -> None:
    registry = Registry()
    async with door_opened(registry) as (door, _, _), working(door, number=2) as second:
        first = Worker(door)
        await first.connect()
        token = (await first.open()).token
        await first.ask(appending(token, said("m", "Hi"), begun("m")))
        second.send(opening())
        assert (await first.reply()).wanted.conversation_id == "c"
        ended = Endpoint("", False, "a-01", failure="exit status 1", traceback="T")
        registry.put_pool_agent(Agent("a", (), (ended,)))
        await first.close()
        # Again, of the process that has its name now.
        registry.put_pool_agent(Agent("a", (), (Endpoint("unix:/s", True, "a-01"),)))
        registry.put_pool_agent(Agent("a", (), (Endpoint("", False, "a-01", failure="OOM-killed"),)))
        opened = (await second.reply()).opened
        assert opened.token > token
        assert [(each.info.message_id, each.message.parts[0].text) for each in opened.messages] == [("m", "Hi")]
        assert [(each.worker_id, each.reason, each.traceback) for each in opened.lost] == [
            ("a-01", "worker a-01 ended: exit status 1", "T")
        ]


async def test_a_cancellation_and_a_loss_are_told_unasked() -> None:
    async with door_opened() as (door, log, _), working(door) as worker, working(door, number=2) as other:
        token = (await worker.open()).token
        await worker.ask(appending(token, said("m"), begun("m")))
        cancel = proto.LogRequest(cancel=conversations.CancelMessageRequest(conversation_id="c"))
        assert (await other.ask(cancel)).cancel.status == conversations.MESSAGE_STATUS_RUNNING
        told = (await worker.reply()).cancelled
        assert (told.conversation.principal, told.message_id) == ("local", "m")
        delete = proto.LogRequest(delete=conversations.DeleteConversationRequest(conversation_id="c"))
        assert (await other.ask(delete)).HasField("delete")
        assert (await worker.reply()).lost.conversation_id == "c"
        assert (await worker.ask(appending(token, piece("m")))).error.reason == "LEASE_LOST"
        assert not log.figures.open


async def test_an_agent_reaches_its_own_conversations_only() -> None:
    async with door_opened() as (door, _, _), working(door) as worker, working(door, agent="b") as stranger:
        await worker.ask(appending((await worker.open()).token, said("m")))
        for request in (
            proto.LogRequest(get=conversations.GetConversationRequest(conversation_id="c", agent="a")),
            proto.LogRequest(delete=conversations.DeleteConversationRequest(conversation_id="c", agent="a")),
            proto.LogRequest(read=reading()),
        ):
            assert (await stranger.ask(request)).error.reason == "CONVERSATION_NOT_FOUND"
        listed = await stranger.ask(proto.LogRequest(list=conversations.ListConversationsRequest(agent="a")))
        assert not listed.list.conversations
        # Another connection's lease is not its own either.
        assert (await stranger.ask(appending(1, piece("m")))).error.reason == "LEASE_LOST"


async def test_what_is_malformed_is_refused() -> None:
    async with door_opened() as (door, _, _), working(door) as worker:
        token = (await worker.open()).token
        for request in (
            opening(""),
            opening("x" * 201),
            opening("ä"),
            appending(token),
            appending(token, conversations.Event(message_id="m")),
        ):
            assert (await worker.ask(request)).error.reason == "INVALID_ARGUMENT"


async def test_a_worker_has_few_connections() -> None:
    async with door_opened() as (door, _, _):
        workers = [Worker(door) for _ in range(5)]
        for worker in workers:
            await worker.connect()
        await asyncio.wait_for(workers[4].serving, 10)
        for worker in workers:
            await worker.close()


async def test_a_workers_processes_are_one_worker() -> None:
    async with door_opened() as (door, _, _):
        workers = [Worker(door) for _ in range(5)]
        for number, worker in enumerate(workers):
            worker.peer = replace(worker.peer, pid=number + 1)
        for worker in workers:
            await worker.connect()
        await asyncio.wait_for(workers[4].serving, 10)
        for worker in workers:
            await worker.close()


async def test_watches_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "MOST_WATCHES", 2)
    async with door_opened() as (door, log, _), working(door) as worker:
        await worker.open()
        watches = [proto.LogRequest(watch=reading()) for _ in range(3)]
        worker.send(*watches)
        refused = await worker.reply()
        assert (refused.id, refused.error.reason) == (watches[2].id, "RESOURCE_EXHAUSTED")
        assert door.watches.held_bytes == 2
        await worker.ask(proto.LogRequest(stop=watches[0].id))
        await eventually(lambda: door.watches.held_bytes == 1)
        worker.send(proto.LogRequest(watch=reading()))
        await eventually(lambda: log.figures.watchers == 2)
    await eventually(lambda: not door.watches.held_bytes)


async def test_what_is_known_of_lost_workers_is_left_out_of_what_would_be_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry = Registry()
    async with door_opened(registry) as (door, _, _):
        first = Worker(door)
        await first.connect()
        token = (await first.open()).token
        await first.ask(appending(token, said("m"), begun("m")))
        ended = Endpoint("", False, "a-01", failure="exit status 1", traceback="T" * 4096)
        registry.put_pool_agent(Agent("a", (), (ended,)))
        await first.close()
        monkeypatch.setattr(frames, "LARGEST_REPLY_BYTES", 4096)
        async with working(door, number=2) as second:
            opened = await second.open()
            assert len(opened.messages) == 1
            assert not opened.lost
