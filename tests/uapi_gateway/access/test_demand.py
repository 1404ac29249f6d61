"""What each method of the platform needs of its caller."""

from typing import Any

import pytest
from agentruntime._proto.uapi.v1 import access_pb2 as access
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool
from agentruntime._proto.uapi.v1 import agent_registry_pb2 as registry
from agentruntime._proto.uapi.v1 import image_service_pb2 as images

from uapi_gateway.access.demand import ANY, OWN_NEEDS, POOL_NEEDS

_NEEDS = {**POOL_NEEDS, **OWN_NEEDS}
_CALL, _OPERATE, _ADMINISTER = access.ROLE_CALL, access.ROLE_OPERATE, access.ROLE_ADMINISTER

_PERMITTING = pool.AgentSettings(permissions=pool.Permissions(egress=["localhost:5432"]))


@pytest.mark.parametrize(
    ("path", "request_", "role", "names"),
    [
        ("AgentPool/RunAgent", pool.RunAgentRequest(image="host:5000/team/a:1"), _OPERATE, ("a",)),
        ("AgentPool/RunAgent", pool.RunAgentRequest(image="a:1", agent="b"), _OPERATE, ("b",)),
        ("AgentPool/RunAgent", pool.RunAgentRequest(image="a:1", settings=_PERMITTING), _OPERATE, ("a", "*")),
        (
            "AgentPool/UpdateAgent",
            pool.UpdateAgentRequest(name="a-01", settings=_PERMITTING),
            _OPERATE,
            ("a-01", "*"),
        ),
        (
            "AgentPool/UpdateAgent",
            pool.UpdateAgentRequest(name="a", settings=pool.AgentSettings(permissions=pool.Permissions())),
            _OPERATE,
            ("a",),
        ),
        ("AgentPool/StopAgent", pool.StopAgentRequest(name="a-01"), _OPERATE, ("a-01",)),
        ("AgentPool/ScaleAgent", pool.ScaleAgentRequest(agent="a"), _OPERATE, ("a",)),
        ("AgentPool/DebugWorker", pool.DebugWorkerRequest(worker_id="a-01"), _OPERATE, ("a-01",)),
        ("AgentPool/ListWorkers", pool.ListWorkersRequest(agent="a"), _OPERATE, ("a",)),
        ("AgentPool/ListWorkers", pool.ListWorkersRequest(), _OPERATE, ANY),
        ("AgentPool/WatchDeployments", pool.WatchDeploymentsRequest(), _OPERATE, ANY),
        ("AgentPool/AcknowledgeDeployments", pool.AcknowledgeDeploymentsRequest(), _ADMINISTER, ("*",)),
        ("AgentPool/ReportLoad", pool.ReportLoadRequest(), _ADMINISTER, ("*",)),
        ("ImageService/RemoveImage", images.RemoveImageRequest(reference="a:1"), _OPERATE, ("*",)),
        ("AgentRegistry/GetAgent", registry.GetAgentRequest(agent_id="a"), _CALL, ("a",)),
        ("AgentRegistry/ListAgents", registry.ListAgentsRequest(), _CALL, ANY),
        (
            "AgentRegistry/RegisterAgent",
            registry.RegisterAgentRequest(registration=registry.AgentRegistration(agent_id="a")),
            _OPERATE,
            ("a",),
        ),
        ("AccessService/CreateKey", access.CreateKeyRequest(agents=["a"]), _ADMINISTER, ("*",)),
    ],
)
def test_roles_and_names(path: str, request_: Any, role: int, names: tuple[str, ...]) -> None:
    _, need = _NEEDS[f"/uapi.v1.{path}"]
    assert (need.role, need.names(request_)) == (role, names)


def test_what_a_caller_sees_of_lists_and_of_changes() -> None:
    def seen(agent: str) -> bool:
        return agent == "mine"

    def shown(path: str, answer: Any) -> Any:
        need = _NEEDS[f"/uapi.v1.{path}"][1]
        assert need.shown is not None
        return need.shown(answer, seen)

    workers = pool.ListWorkersResponse(workers=[pool.Worker(agent="mine"), pool.Worker(agent="other")])
    assert [worker.agent for worker in shown("AgentPool/ListWorkers", workers).workers] == ["mine"]
    deployments = pool.ListDeploymentsResponse(deployments=[pool.Deployment(agent="other")])
    assert list(shown("AgentPool/ListDeployments", deployments).deployments) == []
    agents = registry.ListAgentsResponse(
        agents=[registry.AgentInfo(agent_id="other"), registry.AgentInfo(agent_id="mine")]
    )
    assert [agent.agent_id for agent in shown("AgentRegistry/ListAgents", agents).agents] == ["mine"]
    for kind, path in ((pool.WatchDeploymentsResponse, "AgentPool/WatchDeployments"),):
        assert shown(path, kind(changed=pool.Deployment(agent="other"))) is None
        assert shown(path, kind(removed="other")) is None
        assert shown(path, kind(removed="mine")) is not None
        assert shown(path, kind(synced=True)) is not None


def test_methods_that_nobody_thought_of_need_all_of_a_role() -> None:
    for path, (method, need) in _NEEDS.items():
        if path.startswith(("/uapi.v1.SecretService/", "/uapi.v1.AuditService/", "/uapi.v1.AccessService/")):
            assert need.role == _ADMINISTER, path
            assert need.names(None) == ("*",), path
        assert method.name in path
    assert "/uapi.v1.AccessService/GetCaller" not in _NEEDS
