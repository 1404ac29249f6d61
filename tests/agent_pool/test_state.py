"""What is saved comes back, and one pool at a time has it."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from agentruntime import errors

from agent_pool.asked import Asked, AskedHealth, AskedPolicies
from agent_pool.deployment import Deployment, Roll
from agent_pool.drivers.base import Prepared
from agent_pool.lifecycle import State
from agent_pool.resources import Requested, resolve
from agent_pool.revision import Program, Spec
from agent_pool.scaling.policy import AskedScaling
from agent_pool.state import SavedDeployment, StateStore


def spec(number: int = 3, **fields: Any) -> Spec:
    """A revision of agent "a"."""
    return Spec(
        **{
            "agent": "a",
            "number": number,
            "agent_index": 1,
            "image": "a:1",
            "image_digest": "sha256:" + "0" * 64,
            "bundle": "/bundles/0",
            "program": Program(entrypoint="m:C", env={"K": "v"}),
            "asked": Asked(resources=Requested(memory_bytes=10**8), network="host"),
            "resources": resolve(Requested(memory_bytes=10**8)),
            "prepared": Prepared(("x.Y",), b"\0\xff", "note", ("bad",)),
            "notes": ("n",),
            **fields,
        }
    )


def deployment() -> Deployment:
    asked = AskedPolicies(health=AskedHealth(retries=7), scaling=AskedScaling(min_replicas=1), restart="no")
    made = Deployment("a", {2: spec(2, failure="it died"), 3: spec()}, current=3, replicas=2, asked=asked)
    first, second = made.new_workers(2)
    first.handle, first.gpus, first.restarts = {"pid": 5}, (1,), 4
    del made.workers[second.worker_id]
    return made


def test_workers_of_a_revision_that_is_not_saved_are_not_either() -> None:
    before = deployment()
    kept = list(before.workers)
    before.new_workers(1, revision=4)
    assert list(SavedDeployment.of(before).restored().workers) == kept


async def test_round_trip(tmp_path: Path) -> None:
    state = StateStore(tmp_path)
    assert state.load() == []
    before = deployment()
    [ended] = before.new_workers(1, revision=2)
    ended.state, ended.rests, ended.reason, ended.last_traceback = State.FAILED, True, "exit status 1", "Traceback"
    before.asleep, before.status = True, "could not wake: no room"
    before.roll = Roll("updating to revision 3", 3, 2, ("a-02",), 2, 30.0)
    await state.save({"a": SavedDeployment.of(before), "b": None})
    [saved] = state.load()
    after = saved.restored()
    for name in ("revisions", "current", "asked", "policies", "replicas", "stopped", "asleep", "status", "roll"):
        assert getattr(after, name) == getattr(before, name), name
    assert after.prepared.descriptors == b"\0\xff"
    worker, other = after.workers.values()
    assert (worker.worker_id, worker.handle, worker.gpus, worker.restarts) == ("a-01", {"pid": 5}, (1,), 4)
    assert (worker.revision, worker.state) == (3, State.PENDING)
    assert (other.revision, other.state, other.rests, other.reason) == (2, State.FAILED, True, "exit status 1")
    assert after.launch(other) == before.launch(ended)
    await state.save({"a": None})
    assert state.load() == []
    state.close()


def test_one_pool(tmp_path: Path) -> None:
    first = StateStore(tmp_path)
    with pytest.raises(errors.FailedPrecondition, match="another pool already runs"):
        StateStore(tmp_path)
    first.close()
    StateStore(tmp_path).close()


async def test_damage(tmp_path: Path) -> None:
    state = StateStore(tmp_path)
    await state.save({"a": SavedDeployment.of(deployment())})
    database = sqlite3.connect(tmp_path / "pool.db")
    with database:
        database.execute("UPDATE agents SET body = '{}'")
    with pytest.raises(errors.DataLoss, match="move it away"):
        state.load()
    database.close()
    state.close()
    (tmp_path / "pool.db").write_bytes(b"none of ours" * 1000)
    with pytest.raises(errors.DataLoss, match="move it away"):
        StateStore(tmp_path)


async def test_a_full_disk_says_so_and_keeps_what_was_there(tmp_path: Path) -> None:
    state = StateStore(tmp_path)
    await state.save({"a": SavedDeployment.of(deployment())})
    pages = state._database.execute("PRAGMA page_count").fetchone()[0]
    state._database.execute(f"PRAGMA max_page_count = {pages}")
    large = deployment()
    large.status = "x" * 100_000
    with pytest.raises(errors.ResourceExhausted, match="full; free some of that disk"):
        await state.save({"a": None, "b": SavedDeployment.of(large)})
    assert [saved.agent for saved in state.load()] == ["a"]
    state.close()
