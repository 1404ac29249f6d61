"""The frames between the pool and an agent's processes."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from agentruntime import launch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ends = socket.socketpair()
    yield ends
    for end in ends:
        end.close()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(st.text(), JSON, max_size=5), max_size=3))
def test_messages_arrive_in_order(pair: Pair, messages: list[dict[str, object]]) -> None:
    for message in messages:
        launch.send(pair[0], message)
    assert [launch.receive(pair[1]) for _ in messages] == [(message, []) for message in messages]


def test_descriptors_arrive(pair: Pair) -> None:
    reader, writer = os.pipe()
    launch.send(pair[0], {"op": "fork"}, [writer])
    received = launch.receive(pair[1])
    assert received is not None
    message, (passed,) = received
    os.write(passed, b"hello")
    assert message == {"op": "fork"}
    assert os.read(reader, 5) == b"hello"
    for descriptor in (reader, writer, passed):
        os.close(descriptor)


def test_a_message_larger_than_the_socket_s_buffer(pair: Pair) -> None:
    message = {"text": "x" * 2**21}
    sender = threading.Thread(target=launch.send, args=(pair[0], message))
    sender.start()
    assert launch.receive(pair[1]) == (message, [])
    sender.join()


def test_the_end_of_the_stream(pair: Pair) -> None:
    pair[0].close()
    assert launch.receive(pair[1]) is None


@pytest.mark.parametrize(
    "frame", [b"\x00\x00\x00\x02[]", b"\x00\x00\x00\x03{}}", b"\xff\xff\xff\xff", b"\x00\x00\x00\x09{}"]
)
def test_a_frame_that_is_none(pair: Pair, frame: bytes) -> None:
    pair[0].sendall(frame)
    pair[0].close()
    with pytest.raises(ValueError):  # noqa: PT011 — because JSON's own error is one, too
        launch.receive(pair[1])


def test_a_refused_frame_leaves_no_descriptor_open(pair: Pair) -> None:
    reader, writer = os.pipe()
    before = len(list(Path("/proc/self/fd").iterdir()))
    socket.send_fds(pair[0], [b"\x00\x00\x00\x02[]"], [writer])
    with pytest.raises(ValueError, match="not an object"):
        launch.receive(pair[1])
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    os.close(reader)
    os.close(writer)


def test_specs_cross_as_json() -> None:
    template = launch.TemplateSpec("my-agent@3", "my-agent", "/bundle", "agent:MyAgent", services=["a.B"])
    worker = launch.WorkerSpec(
        "my-agent-01", "my-agent", 3, 1, env={"A": "b"}, conversations=launch.ConversationSpec("reject")
    )
    assert launch.template_spec(launch.spec_message("load", template)["spec"]) == template
    assert launch.worker_spec(launch.spec_message("fork", worker)["spec"]) == worker
    with pytest.raises(TypeError):
        launch.worker_spec({"worker_id": "w", "surprise": 1})
    assert launch.socket_name(7) == "7/s"
