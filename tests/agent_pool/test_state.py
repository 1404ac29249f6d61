"""What is saved comes back, and one pool at a time has it."""

from pathlib import Path

import pytest
from agentruntime import errors

from agent_pool.deployment import Asked, Deployment, Program, Spec
from agent_pool.drivers.base import Prepared
from agent_pool.health import HealthPolicy
from agent_pool.resources import Requested, resolve
from agent_pool.state import Saved, SavedDeployment, StateFile


def deployment() -> Deployment:
    spec = Spec(
        agent="a",
        number=3,
        agent_index=1,
        image="a:1",
        image_digest="sha256:" + "0" * 64,
        bundle="/bundles/0",
        program=Program(entrypoint="m:C", env={"K": "v"}),
        asked=Asked(resources=Requested(memory_bytes=10**8), network="host"),
        resources=resolve(Requested(memory_bytes=10**8)),
        health=HealthPolicy(retries=7),
    )
    made = Deployment(spec, replicas=2, prepared=Prepared(("x.Y",), b"\0\xff", "note", ("bad",)), notes=("n",))
    first, second = made.new_workers(2)
    first.handle, first.gpus, first.restarts = {"pid": 5}, (1,), 4
    del made.workers[second.worker_id]
    return made


async def test_round_trip(tmp_path: Path) -> None:
    state = StateFile(tmp_path)
    assert state.load() == Saved()
    before = deployment()
    await state.save(Saved.model_construct(next_index=7, deployments=[SavedDeployment.of(before)]))
    loaded = state.load()
    assert loaded.next_index == 7
    [saved] = loaded.deployments
    after = saved.restored()
    assert after.spec == before.spec
    assert after.prepared == before.prepared
    assert (after.replicas, after.stopped, after.notes) == (2, False, ("n",))
    [worker] = after.workers.values()
    assert (worker.worker_id, worker.handle, worker.gpus, worker.restarts) == ("a-01", {"pid": 5}, (1,), 4)
    assert after.spec.revision() == before.spec.revision()
    state.close()


def test_one_pool(tmp_path: Path) -> None:
    first = StateFile(tmp_path)
    with pytest.raises(errors.FailedPrecondition, match="another pool already runs"):
        StateFile(tmp_path)
    first.close()
    StateFile(tmp_path).close()


def test_damage(tmp_path: Path) -> None:
    state = StateFile(tmp_path)
    (tmp_path / "pool.json").write_text('{"deployments": [{"spec": 1}]}')
    with pytest.raises(errors.DataLoss, match="move it away"):
        state.load()
    state.close()
