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
# Settings, what is allowed to go unenforced, and whether that needs the role for all agents.
_WIDENING: list[tuple[pool.AgentSettings, bool, tuple[str, ...]]] = [
    (pool.AgentSettings(network=pool.NETWORK_MODE_HOST), False, ("*",)),
    (pool.AgentSettings(network=pool.NETWORK_MODE_ISOLATED), False, ()),
    (pool.AgentSettings(venv="/opt/venv"), False, ("*",)),
    (pool.AgentSettings(logging=pool.Logging(aggregator="fluentd://localhost:6379")), False, ("*",)),
    (pool.AgentSettings(logging=pool.Logging(aggregator="none", max_bytes=10**6)), False, ()),
    (pool.AgentSettings(), True, ("*",)),
    # Within the agent's own walls: its code, which is its operator's to say, could do the same.
    (pool.AgentSettings(env={"LD_PRELOAD": "/app/x.so"}, serving=pool.Serving(debug=True)), False, ()),
    (pool.AgentSettings(isolation=pool.Isolation(read_only_root=False), resources=pool.Resources(gpus=1)), False, ()),
    (pool.AgentSettings(access=pool.Access(keys=["none"]), mode=pool.RUNTIME_MODE_CONTAINER), False, ()),
]


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
        *(
            (f"AgentPool/{method}", request_, _OPERATE, ("a", *more))
            for settings, unenforced, more in _WIDENING
            for method, request_ in (
                ("RunAgent", pool.RunAgentRequest(image="a", settings=settings, allow_unenforced=unenforced)),
                ("UpdateAgent", pool.UpdateAgentRequest(name="a", settings=settings, allow_unenforced=unenforced)),
            )
        ),
        ("AgentPool/ScaleAgent", pool.ScaleAgentRequest(agent="a", allow_unenforced=True), _OPERATE, ("a", "*")),
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


def test_every_setting_was_thought_of() -> None:
    """Whoever adds one says above whether the operator of a single agent may set it."""
    assert set(pool.AgentSettings.DESCRIPTOR.fields_by_name) == {
        *("network", "venv", "logging", "permissions"),  # of which something needs the role for all agents
        *(
            "resources",
            "env",
            "log_level",
            "serving",
            "health_check",
            "restart_policy",
            "scaling",
            "traffic",
            "cache",
        ),
        *("mode", "isolation", "log_format", "access", "conversations"),
    }


def test_names_are_read_as_the_service_reads_them() -> None:
    """An agent may be called as another one's worker would be."""
    namings = {path.rpartition("/")[2]: (need.naming, set(method.input_type.fields_by_name)) for path, (method, need)
               in POOL_NEEDS.items()}  # fmt: skip
    for method, (naming, fields) in namings.items():
        if "agent" in fields:
            assert naming == "agent", method
        if "worker_id" in fields:
            assert naming == "worker", method
