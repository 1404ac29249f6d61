"""Why a call that an agent makes goes to nobody; what is told and what is not."""

import pytest
from agentruntime import errors

from uapi_gateway.kernel import system_calls
from uapi_gateway.registry import Agent, Demands, Permissions, Registry

_SERVICE = "/s.S/Call"


def _registry() -> Registry:
    registry = Registry()
    for agent in (
        Agent("a", (), (), permissions=Permissions(agents=("b", "guarded", "gone", "new"))),
        Agent("b", ("s.S", "s.Two"), ()),
        Agent("hidden", ("s.Two", "s.Hidden"), ()),
        Agent("guarded", ("s.Guarded",), (), demands=Demands(keys=("ci",))),
        Agent("new", ("s.New", "s.Two"), (), demands=Demands(tls=True)),
    ):
        registry.put_pool_agent(agent)
    return registry


@pytest.mark.parametrize(
    ("method", "metadata", "error", "says"),
    [
        (_SERVICE, {"x-uapi-agent": "hidden"}, errors.PermissionDenied, "agents: [b, guarded, gone, new, hidden]"),
        (_SERVICE, {"x-uapi-agent": "nobody"}, errors.PermissionDenied, "agents: [b, guarded, gone, new, nobody]"),
        (_SERVICE, {"x-uapi-agent": "b-01"}, errors.PermissionDenied, "not one worker of them: name 'b'"),
        (_SERVICE, {"x-uapi-agent": "hidden-01"}, errors.PermissionDenied, "new, hidden-01]"),
        (_SERVICE, {"x-uapi-agent": "gone"}, errors.AgentNotFound, "'gone' not found"),
        (_SERVICE, {"x-uapi-agent": "guarded"}, errors.PermissionDenied, "demands a credential"),
        (_SERVICE, {"x-uapi-agent": "new"}, errors.AgentNotReady, "since a moment ago"),
        ("/s.Guarded/Call", {}, errors.PermissionDenied, "demands a credential"),
        ("/s.Hidden/Call", {}, errors.PermissionDenied, "may call no agent that serves s.Hidden;"),
        ("/s.Nobody/Call", {}, errors.PermissionDenied, "may call no agent that serves s.Nobody;"),
        ("/s.Two/Call", {}, errors.AgentAmbiguous, "2 agents serve s.Two: b, new;"),
        ("/s.S/Call", {}, errors.AgentNotReady, "since a moment ago"),
        ("/uapi.v1.AgentPool/StopAgent", {}, errors.PermissionDenied, "no access to uapi.v1.AgentPool"),
        ("/grpc.health.v1.Health/Check", {}, errors.PermissionDenied, "no access to grpc.health.v1.Health"),
        (_SERVICE, {"x-uapi-chain": ",a" * 17, "x-uapi-agent": "b"}, errors.FailedPrecondition, "circle"),
    ],
)
def test_refusals(method: str, metadata: dict[str, str], error: type[errors.AgentError], says: str) -> None:
    registry = _registry()
    agent = registry.get("a")
    assert agent is not None
    found = system_calls.refusal(registry, agent, method, metadata.items())
    assert isinstance(found, error)
    assert says in found.message
    # Nobody hears of an agent that it may not call.
    assert "hidden" not in found.message or metadata.get("x-uapi-agent", "").startswith("hidden")


@pytest.mark.parametrize("owner", ["b", "guarded", "nobody"])
def test_who_may_call_every_agent_names_no_worker(owner: str) -> None:
    registry = _registry()
    registry.put_pool_agent(Agent("x", (), (), permissions=Permissions(agents=("*",))))
    agent = registry.get("x")
    assert agent is not None
    found = system_calls.refusal(registry, agent, _SERVICE, {"x-uapi-agent": f"{owner}-01"}.items())
    assert isinstance(found, errors.PermissionDenied)
    assert f"not one worker of them: name '{owner}'" in found.message


def test_more_than_one_agent_serves_it_and_one_may_be_called() -> None:
    registry = _registry()
    registry.put_pool_agent(Agent("x", (), (), permissions=Permissions(agents=("b",))))
    agent = registry.get("x")
    assert agent is not None
    found = system_calls.refusal(registry, agent, "/s.Two/Call", ())
    assert isinstance(found, errors.InvalidArgument)
    assert "hidden" not in found.message
