"""What workers say to the event log."""

import asyncio
import struct
from collections.abc import Callable

from agentruntime._proto.uapi.v1 import event_log_pb2 as proto

from tests.fuzz.target import Target
from tests.uapi_gateway.conversations.memory import MemoryStore
from uapi_gateway.conversations.door import Connection, LogDoor
from uapi_gateway.conversations.ends import Ends
from uapi_gateway.conversations.log import EventLog
from uapi_gateway.kernel.peers import Peer
from uapi_gateway.registry import Registry

_LENGTH = struct.Struct(">I")


class _Transport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.aborted = False

    def write(self, data: "bytes | bytearray | memoryview[int]") -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True


def event_log(data: bytes) -> None:
    """Frames of a worker: answered, or its connection ends; it gets at its own agent's conversations only, and what
    it took of the memory for all it gives back."""
    asyncio.run(_event_log(data))


async def _event_log(data: bytes) -> None:
    store = MemoryStore()

    async def opened() -> MemoryStore:
        return store

    log = EventLog(opened)
    running = asyncio.create_task(log.run())
    door, transport = LogDoor(log, Ends(Registry())), _Transport()
    connection = Connection(door, Peer("a", "a-01", 1, 0, 1))
    connection.connection_made(transport)
    try:
        connection.data_received(data)
        # In pieces, after a lease that it has.
        opening = proto.LogRequest(id=99, principal="p", open=proto.OpenConversation(conversation_id="c"))
        frame = proto.LogRequests(requests=[opening]).SerializeToString()
        for piece in (_LENGTH.pack(len(frame)) + frame, data[:1], data[1:7], data[7:]):
            connection.data_received(piece)
            await _rounds(lambda: False)
    finally:
        connection.leave()
        await _rounds(lambda: not log.figures.open)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert transport.aborted
    assert not door.room.allowance.held_bytes
    assert {key.agent for key in store.kept} <= {"a"}
    written = bytes(transport.written)
    while written:
        (size_bytes,) = _LENGTH.unpack_from(written)
        replies = proto.LogReplies.FromString(written[_LENGTH.size : _LENGTH.size + size_bytes]).replies
        assert replies
        assert all(reply.WhichOneof("result") for reply in replies)
        written = written[_LENGTH.size + size_bytes :]


async def _rounds(over: Callable[[], bool]) -> None:
    """Some of the event loop."""
    for _ in range(20):
        if over():
            return
        await asyncio.sleep(0)


_TOKENS = (b"\x0a", b"\x12\x03\x0a\x01c", b"\x62\x01p", b"\x08\x01", b"\x1a", b"\x52\x03\x0a\x01c", b"\x58\x01")
TARGETS = (Target("event-log", event_log, _TOKENS),)
