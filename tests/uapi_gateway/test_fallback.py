"""What calls are told that go to no agent."""

from agentruntime.errors import AgentAmbiguous, AgentNotReady, Unimplemented

from tests.uapi_gateway.test_registry import agent
from uapi_gateway.fallback import explain
from uapi_gateway.registry import Registry


def test_explanations() -> None:
    registry = Registry()
    error = explain(registry, "/s.S/Do")
    assert isinstance(error, Unimplemented)
    assert "no agent serves s.S" in error.message
    registry.put_pool_agent(agent("a"))
    assert isinstance(explain(registry, "/s.S/Do"), AgentNotReady)
    registry.put_pool_agent(agent("b"))
    error = explain(registry, "/s.S/Do")
    assert isinstance(error, AgentAmbiguous)
    assert error.message == "s.S is served by more than one agent; name one in x-uapi-agent: a, b"
    registry.put_pool_agent(agent("b", stopped=True))
    assert isinstance(explain(registry, "/s.S/Do"), AgentNotReady)
    assert isinstance(explain(registry, "nonsense"), Unimplemented)
