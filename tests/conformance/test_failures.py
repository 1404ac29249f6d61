"""What fails: workers that crash, images and requests that cannot work; each with its reason, and nothing left."""

import os
import signal
import socket
import threading
from collections.abc import Iterator

import pytest
from agentruntime import errors
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb

from tests.conformance.stage import IMAGE, Stage
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.root]
_READY = pb.WORKER_STATE_READY
# Fails at each start but the first: the test's listener takes the first connection alone.
_FIRST_START_ONLY = """
import socket
with socket.create_connection(("127.0.0.1", {port}), timeout=10) as connection:
    if connection.recv(1) != b"1":
        raise RuntimeError("not the first start")
"""


def test_crash(stage: Stage) -> None:
    """A worker that ends is started again, with the reason."""
    with stage.running("crashing"):
        with pytest.raises(errors.AgentError):
            stage.ask("crashing", "answer = lambda: os._exit(3)")
        again = stage.until("crashing-01", lambda now: now.restarts == 1 and now.state == _READY)
        assert again.reason == "restarted after: exit status 3"
        os.kill(again.pid, signal.SIGKILL)
        again = stage.until("crashing-01", lambda now: now.restarts == 2 and now.state == _READY)
        assert again.reason == "restarted after: killed by signal 9"
        assert stage.client.generate_text("crashing", "back").text == "back"


@pytest.fixture
def first_start_only() -> Iterator[str]:
    """Code for a start that succeeds once, on the host's network."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            answer = b"1"
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(answer)
                answer = b"0"

        server = threading.Thread(target=serve)
        server.start()
        yield _FIRST_START_ONLY.format(port=listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        server.join()


def test_crash_loop(stage: Stage, first_start_only: str) -> None:
    """A worker that fails again and again is named a crash loop, with its traceback and the next try."""
    network = pb.NETWORK_MODE_HOST
    with stage.running("looping", env={"AT_START": first_start_only}, network=network) as deployment:
        [worker] = deployment.workers
        os.kill(worker.pid, signal.SIGKILL)
        looping = stage.until("looping-01", lambda now: now.crash_loop, timeout_s=60)
        assert "RuntimeError: not the first start" in looping.last_traceback
        assert looping.HasField("retry_at")
        assert "CRASH LOOP" in stage.agent("ps").stdout
    until(lambda: stage.containers() == set())


@pytest.mark.parametrize("when", ["import", "start"])
def test_bad_image(stage: Stage, when: str) -> None:
    """An agent that fails to import or to start fails the run with its traceback, and leaves nothing."""
    before = stage.traces()
    image, env = IMAGE, {"AT_START": "raise RuntimeError('broken at start')"}
    if when == "import":
        image, env = stage.build("broken", "1.0.0", "raise RuntimeError('broken at import')"), {}
    with pytest.raises(errors.FailedPrecondition, match=f"RuntimeError: broken at {when}"):
        stage.run("broken", image, env=env)
    assert stage.workers("broken") == []
    until(lambda: stage.traces() == before)
    if when == "import":
        stage.agent("rmi", image)


def test_bad_gpu(stage: Stage) -> None:
    """GPUs that this machine does not have are refused with what it has, and nothing is left."""
    before = stage.traces()
    have = stage.client.pool.GetNode(pb.GetNodeRequest()).capacity.gpus
    with pytest.raises(errors.FailedPrecondition, match=f"this machine has {have} GPU"):
        stage.run("greedy", resources=pb.Resources(gpus=have + 1))
    assert stage.workers("greedy") == []
    until(lambda: stage.traces() == before)


def test_does_not_fit(stage: Stage) -> None:
    """What does not fit is refused with what is free, and nothing is left."""
    before = stage.traces()
    with pytest.raises(errors.ResourceExhausted, match="free"):
        stage.run("huge", resources=pb.Resources(memory_bytes=10**15))
    assert stage.workers("huge") == []
    until(lambda: stage.traces() == before)


def test_bad_log_server(stage: Stage) -> None:
    """A log server that does not answer harms no worker, and leaves nothing."""
    with stage.running("unheard", logging=pb.Logging(aggregator="fluentd://127.0.0.1:1")):
        assert stage.client.generate_text("unheard", "hello").text == "hello"
