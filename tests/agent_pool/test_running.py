"""RunAgent and ScaleAgent: what was answered is on disk, and what was refused changed nothing."""

import io
from pathlib import Path
from typing import Any

import pytest
from agentruntime import errors
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb
from agentruntime.calls import SOME_AGENTS_KEY

from agent_pool.asked import Asked, AskedPermissions, AskedPolicies
from agent_pool.deployment import RunRequest
from agent_pool.scaling.policy import AskedScaling
from agent_pool.service import AgentPoolService
from agent_pool.updates import ScaleRequest, UpdateRequest
from tests.agent_pool.clinic import clinic
from tests.agent_pool.harness import project
from uapi_gateway.access.demand import POOL_NEEDS


async def test_what_was_answered_is_on_disk(short_directory: Path) -> None:
    async with clinic(short_directory) as one:
        await one.pool.run(RunRequest("echo"))
        await one.pool.run(RunRequest("echo", policies=AskedPolicies(restart="no")))
        assert one.on_disk().asked.restart == "no"
        await one.pool.updates.update(UpdateRequest("echo", policies=AskedPolicies(restart="on-failure")))
        assert one.on_disk().asked.restart == "on-failure"
        await one.pool.run(RunRequest("echo", replicas=2))
        saved = one.on_disk()
        assert saved.replicas == 2
        # A pool that takes over keeps a worker only if it knows that it runs.
        assert [bool(worker.handle) for worker in saved.workers] == [True, True]


async def test_what_was_refused_leaves_no_policies(short_directory: Path) -> None:
    async with clinic(short_directory) as one:
        before = (await one.pool.run(RunRequest("echo"))).policies
        up_to_five = AskedPolicies(restart="no", scaling=AskedScaling(auto_scale=True, max_replicas=5))
        with pytest.raises(errors.InvalidArgument, match="99 replicas"):
            await one.pool.run(RunRequest("echo", replicas=99, policies=up_to_five))
        with pytest.raises(errors.InvalidArgument, match="99 replicas"):
            await one.pool.updates.scale(ScaleRequest("echo", 99, scaling=up_to_five.scaling))
        one.driver.refused = {"start"}
        with pytest.raises(OSError, match="no more descriptors"):
            await one.pool.run(RunRequest("echo", replicas=2, policies=up_to_five))
        with pytest.raises(OSError, match="no more descriptors"):
            await one.pool.updates.scale(ScaleRequest("echo", 2, scaling=up_to_five.scaling))
        assert one.pool.get("echo").policies == before
        assert one.pool.get("echo").replicas == 1


async def test_one_that_was_stopped_goes_on_as_it_was_asked_to_run(short_directory: Path) -> None:
    async with clinic(short_directory) as one:
        asked = Asked(log_level="DEBUG", env={"A": "1"})
        await one.pool.run(RunRequest("echo", asked=asked, policies=AskedPolicies(restart="no")))
        await one.pool.stop("echo", 1.0)
        again = await one.pool.run(RunRequest("echo", asked=Asked(env={"B": "2"})))
        assert (again.spec.log_level, again.spec.asked.env) == ("DEBUG", {"A": "1", "B": "2"})
        assert again.policies.restart == "no"


async def test_what_runs_has_the_name_that_the_gateway_has_looked_at(short_directory: Path) -> None:
    """Whoever may operate `other` must not get at `victim`, nor at its secrets, by an image that calls itself so."""
    _, need = POOL_NEEDS["/uapi.v1.AgentPool/RunAgent"]
    async with clinic(short_directory) as one:
        await one.pool.run(RunRequest("echo", agent="victim", replicas=1))
        archive = io.BytesIO(project("victim"))
        image = await one.pool.catalog.build(archive, "registry.example.com:5000/team/other:8", lambda _: None)
        pinned = f"registry.example.com:5000/team/other@{image.digest}"
        for reference, name in ((image.reference, ""), (pinned, ""), (image.reference, "third")):
            deployment = await one.pool.run(RunRequest(reference, agent=name))
            looked_at = need.names(pb.RunAgentRequest(image=reference, agent=name))
            assert looked_at == (deployment.agent,)
            assert deployment.agent == (name or "other")
            assert one.on_disk(deployment.agent).restored().agent == deployment.agent
            # Where nobody chose the name, it may surprise.
            assert any("calls it 'victim'" in note for note in deployment.notes) == (not name)
        again = await one.pool.updates.update(UpdateRequest("other", image="echo"))
        back = await one.pool.updates.roll_back("other", None, 1.0)
        assert (again.agent, back.agent, back.spec.agent) == ("other", "other", "other")
        victim = one.pool.get("victim")
        assert (victim.spec.image, victim.replicas, victim.spec.number) == ("echo:latest", 1, 1)


class _Told:
    """A call by the gateway, for an operator of some agents or of all."""

    def __init__(self, *, some: bool) -> None:
        self._told = ((SOME_AGENTS_KEY, "1"),) if some else ()

    def invocation_metadata(self) -> Any:
        return self._told


async def test_what_was_taken_back_comes_back_by_whoever_may_give_it(short_directory: Path) -> None:
    some: Any = _Told(some=True)
    everything: Any = _Told(some=False)
    given = Asked(network="host", venv="/opt/venv", permissions=AskedPermissions(egress=("localhost:5432",)))
    taken = Asked(network="isolated", venv="/opt/other", permissions=AskedPermissions(egress=()))
    async with clinic(short_directory) as one:
        logs: Any = None
        service = AgentPoolService(one.pool, logs)
        await one.pool.run(RunRequest("echo", asked=given, allow_unenforced=True))
        await one.pool.updates.update(UpdateRequest("echo", asked=taken))
        with pytest.raises(errors.PermissionDenied, match="egress, network, venv, allow_unenforced"):
            await service.RollbackAgent(pb.RollbackAgentRequest(agent="echo"), some)
        assert one.pool.get("echo").spec.network == "isolated"
        # What is no way beyond the agent comes back.
        await one.pool.updates.update(UpdateRequest("echo", asked=Asked(env={"A": "2"})))
        await service.RollbackAgent(pb.RollbackAgentRequest(agent="echo"), some)
        now = one.pool.get("echo").spec
        assert (now.env.get("A"), now.network, now.allow_unenforced) == (None, "isolated", False)
        await service.RollbackAgent(pb.RollbackAgentRequest(agent="echo", revision=1), everything)
        assert one.pool.get("echo").spec.network == "host"


async def test_where_the_pool_sends_log_lines_is_not_said_by_an_image_alone(short_directory: Path) -> None:
    some: Any = _Told(some=True)
    everything: Any = _Told(some=False)
    none = pb.AgentSettings(logging=pb.Logging(aggregator="none"))
    async with clinic(short_directory) as one:
        logs: Any = None
        service = AgentPoolService(one.pool, logs)
        for tag, port in (("1", 1111), ("2", 2222)):
            archive = io.BytesIO(project("sender", manifest=f"logging: {{aggregator: 'fluentd://localhost:{port}'}}"))
            await one.pool.catalog.build(archive, f"sender:{tag}", lambda _: None)
        with pytest.raises(errors.PermissionDenied, match="localhost:1111, to which the pool connects"):
            await service.RunAgent(pb.RunAgentRequest(image="sender:1"), some)
        assert one.pool.find("sender") is None
        await service.RunAgent(pb.RunAgentRequest(image="sender:1", agent="silent", settings=none), some)
        await service.RunAgent(pb.RunAgentRequest(image="sender:1"), everything)
        with pytest.raises(errors.PermissionDenied, match="localhost:2222"):
            await service.UpdateAgent(pb.UpdateAgentRequest(name="sender", image="sender:2"), some)
        # Where it goes already, it may go on.
        more = pb.AgentSettings(env={"A": "1"})
        await service.UpdateAgent(pb.UpdateAgentRequest(name="sender", settings=more), some)
        await service.RollbackAgent(pb.RollbackAgentRequest(agent="sender"), some)
        await one.pool.stop("sender", 1.0)
        await service.RunAgent(pb.RunAgentRequest(image="sender:1"), some)
        assert one.pool.get("sender").policies.logging.aggregator == "fluentd://localhost:1111"
        await service.UpdateAgent(pb.UpdateAgentRequest(name="silent", image="sender:2"), some)
        assert one.pool.get("silent").policies.logging.aggregator == "none"
        # Of another image under the agent's name, nothing was asked before.
        await one.pool.catalog.tag("sender:1", "team/silent:1")
        await one.pool.stop("silent", 1.0)
        with pytest.raises(errors.PermissionDenied, match="localhost:1111"):
            await service.RunAgent(pb.RunAgentRequest(image="team/silent:1"), some)


async def test_images_that_come_with_the_platform_are_called_as_they_are(short_directory: Path) -> None:
    async with clinic(short_directory) as one:
        for image in one.pool.catalog.images():
            opened = await one.pool.catalog.open(image.reference)
            assert image.reference == f"{opened.manifest.name}:latest"
