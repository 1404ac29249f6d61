"""An agent's life: started, drained, stopped, restarted, updated, scaled, asleep, adopted."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from agentruntime import errors
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb

from tests.conformance.stage import CONTAINER, IMAGE, MODES, Stage
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.root]
_READY = pb.WORKER_STATE_READY
# Ends once its process gets a signal: a worker that drains takes no call that would tell it.
_SLOW = """#
async def answer():
    go = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, go.set)
    yield "begun "
    await go.wait()
    yield "done"
"""
_TIMEOUT_S = 60


@contextmanager
def in_flight(stage: Stage, name: str) -> Iterator[list[str]]:
    """A stream that has begun, and goes on in a thread; what it said in the end is yielded."""
    stream = stage.client.stream_text(name, _SLOW, timeout_s=_TIMEOUT_S)
    said = [next(stream).text]
    reader = threading.Thread(target=lambda: said.extend(piece.text for piece in stream))
    reader.start()
    try:
        yield said
    finally:
        reader.join(_TIMEOUT_S)


def test_start(stage: Stage) -> None:
    """`agent run` starts a worker, which becomes ready, in the mode that was asked for."""
    mode = f"--{stage.driver}"
    before = stage.traces()
    stage.agent("run", IMAGE, "--name", "started", mode)
    try:
        [worker] = stage.workers("started")
        assert (worker.worker_id, worker.state) == ("started-01", _READY)
        stage.identity(worker)
        deployment = stage.client.pool.GetDeployment(pb.GetDeploymentRequest(agent="started")).deployment
        assert deployment.settings.mode == MODES[stage.driver]
        assert stage.client.generate_text("started", "hello").text == "hello"
    finally:
        stage.agent("stop", "started", "--grace", "5s")
    until(lambda: stage.traces() == before)
    assert not stage.exists(worker)


def test_drain(stage: Stage) -> None:
    """A worker that is stopped finishes its calls, and takes no new ones."""
    with stage.running("drained") as deployment, in_flight(stage, "drained") as said:
        request = pb.StopAgentRequest(name="drained")
        request.grace_period.FromSeconds(_TIMEOUT_S)
        stopping = stage.client.pool.StopAgent.future(request, timeout=_TIMEOUT_S)
        stage.until("drained-01", lambda now: now.state == pb.WORKER_STATE_DRAINING)
        until(lambda: refuses(stage, "drained"))
        [worker] = deployment.workers
        os.kill(worker.pid, signal.SIGUSR1)
        stopping.result()
    assert "".join(said) == "begun done"
    until(lambda: not stage.exists(worker))


def refuses(stage: Stage, name: str) -> bool:
    """Whether an agent takes no call any more."""
    try:
        stage.client.generate_text(name, "too late?", timeout_s=2)
    except errors.AgentError:
        return True
    return False


def test_grace(stage: Stage) -> None:
    """Calls that do not finish within the grace period end with a reason."""
    with stage.running("hasty"):
        stream = stage.client.stream_text("hasty", _SLOW, timeout_s=_TIMEOUT_S)
        assert next(stream).text == "begun "
        stage.agent("stop", "hasty", "--grace", "0.3s")
        with pytest.raises(errors.Unavailable) as ended:
            list(stream)
        assert ended.value.reason == "WORKER_DRAINED"


def test_restart(stage: Stage) -> None:
    """`agent restart` replaces a worker by a new one of the same name."""
    with stage.running("again") as deployment:
        [before] = deployment.workers
        stage.agent("restart", "again", "--grace", "5s")
        [now] = stage.workers("again")
        assert (now.worker_id, now.state) == (before.worker_id, _READY)
        assert stage.identity(now) != stage.identity(before)
        until(lambda: not stage.exists(before))


def test_scale(stage: Stage) -> None:
    """An agent scales from 1 worker to 3, and back."""
    with stage.running("scaled"):
        stage.agent("scale", "scaled", "--replicas", "3")
        workers = stage.workers("scaled")
        assert [worker.state for worker in workers] == [_READY] * 3
        said = {stage.client.generate_text(worker.worker_id, worker.worker_id).text for worker in workers}
        assert said == {"scaled-01", "scaled-02", "scaled-03"}
        stage.agent("scale", "scaled", "--replicas", "1")
        until(lambda: [worker.worker_id for worker in stage.workers("scaled")] == ["scaled-01"])
        until(lambda: not any(stage.exists(worker) for worker in workers[1:]))


def test_sleep(stage: Stage) -> None:
    """An agent that sleeps has no worker, and a call wakes it."""
    with stage.running("sleepy") as deployment:
        [before] = deployment.workers
        stage.agent("scale", "sleepy", "--replicas", "0")
        until(lambda: not stage.exists(before))
        assert stage.workers("sleepy") == []
        assert stage.client.generate_text("sleepy", "wake up").text == "wake up"
        assert stage.identity(stage.worker("sleepy-01")) != stage.identity(before)


def test_update_and_rollback(stage: Stage) -> None:
    """An update replaces workers while calls go on, and a rollback undoes it."""
    version = "answer = lambda: VERSION"
    second = stage.build("prober", "2.0.0")
    with stage.running("kept"):
        assert stage.ask("kept", version) == "1.0.0"
        failed: list[errors.AgentError] = []
        done = threading.Event()

        def call() -> None:
            while not done.wait(0.02):
                try:
                    stage.client.generate_text("kept", "who?")
                except errors.AgentError as error:
                    failed.append(error)

        caller = threading.Thread(target=call)
        caller.start()
        try:
            stage.agent("update", "kept", "--image", second)
            assert stage.ask("kept", version) == "2.0.0"
            stage.agent("rollback", "kept")
        finally:
            done.set()
            caller.join()
        assert stage.ask("kept", version) == "1.0.0"
        assert failed == []
    stage.agent("rmi", second)


def test_resize(stage: Stage) -> None:
    """Other caps of memory and CPU are taken up by the worker that runs."""
    with stage.running("resized") as deployment:
        [before] = deployment.workers
        stage.agent("scale", "resized", "--memory", "200MB", "--cpu", "0.1")
        [now] = stage.workers("resized")
        assert stage.identity(now) == stage.identity(before)
        assert (now.resources.memory_limit_bytes, now.resources.cpu_limit_millis) == (200_000_000, 100)


def test_adoption(stage: Stage) -> None:
    """A pool that was killed adopts its workers: the same process and container, with calls that go on."""
    with stage.running("adopted") as deployment, in_flight(stage, "adopted") as said:
        [before] = deployment.workers
        pool = stage.processes()["pool"]
        os.kill(pool, signal.SIGKILL)
        assert stage.client.generate_text("adopted", "meanwhile").text == "meanwhile"
        until(lambda: stage.processes().get("pool") not in (None, 0, pool), 30)
        now = stage.until("adopted-01", lambda now: now.state == _READY)
        assert stage.identity(now) == stage.identity(before)
        assert now.restarts == 0
        os.kill(now.pid, signal.SIGUSR1)
    assert "".join(said) == "begun done"
    # It is watched as before.
    with stage.running("adopted") as deployment:
        [now] = deployment.workers
        os.kill(now.pid, signal.SIGKILL)
        again = stage.until("adopted-01", lambda now: now.restarts == 1 and now.state == _READY)
        assert again.reason == "restarted after: killed by signal 9"


def test_other_mode(stage: Stage) -> None:
    """A mode that is asked for and cannot be had is refused, and one that runs is kept."""
    if stage.driver == CONTAINER:
        with stage.running("moded"):
            refused = stage.agent("run", IMAGE, "--name", "moded", "--native", code=10 + 9)
            assert "agent update moded --native" in refused.stderr
    else:
        refused = stage.agent("run", IMAGE, "--name", "moded", "--container", code=10 + 9)
        assert "engine" in refused.stderr
        assert stage.workers("moded") == []
