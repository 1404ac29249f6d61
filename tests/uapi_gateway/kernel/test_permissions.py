"""What an agent may use, and the line that it would need."""

import pytest
import yaml
from agentruntime._proto.uapi.v1 import system_calls_pb2 as proto
from agentruntime.errors import InvalidArgument, PermissionDenied

from uapi_gateway.kernel import permissions
from uapi_gateway.registry import Agent, Permissions

_AGENT = Agent(
    "a",
    (),
    (),
    permissions=Permissions(
        agents=("b", "c"), models=("*",), egress=("Api.example.com:443",), operators_egress=("10.0.0.1:80",)
    ),
)


@pytest.mark.parametrize(
    ("kind", "name", "allowed"),
    [
        (proto.PERMISSION_KIND_AGENT, "b", True),
        (proto.PERMISSION_KIND_AGENT, "a", True),
        (proto.PERMISSION_KIND_AGENT, "d", False),
        (proto.PERMISSION_KIND_AGENT, "b-01", False),
        (proto.PERMISSION_KIND_AGENT, "", False),
        (proto.PERMISSION_KIND_MODEL, "any", True),
        (proto.PERMISSION_KIND_MODEL, "a", True),
        (proto.PERMISSION_KIND_TOPIC, "a", False),
        (proto.PERMISSION_KIND_TOOL, "search", False),
        (proto.PERMISSION_KIND_EGRESS, "api.example.com:443", True),
        (proto.PERMISSION_KIND_EGRESS, "10.0.0.1:80", True),
        (proto.PERMISSION_KIND_EGRESS, "api.example.com:80", False),
        (proto.PERMISSION_KIND_SECRET, "KEY", False),
    ],
)
def test_what_is_allowed(kind: "proto.PermissionKind.ValueType", name: str, allowed: bool) -> None:
    assert permissions.allowed(_AGENT, kind, name) is allowed
    assert permissions.allowed(Agent("nobody", (), ()), kind, name) is False
    if allowed:
        permissions.require(_AGENT, kind, name)
        return
    with pytest.raises(PermissionDenied) as denied:
        permissions.require(_AGENT, kind, name)
    assert denied.value.reason == "NOT_PERMITTED"


@pytest.mark.parametrize(
    "name", ["d", "api.example.com:443", "*", "a: b", "x]", 'say "hi"', "yes\n", "1", "[::1]:80"]
)
@pytest.mark.parametrize("kind", [proto.PERMISSION_KIND_AGENT, proto.PERMISSION_KIND_TOOL])
def test_a_denial_says_the_line_that_would_be_needed(kind: "proto.PermissionKind.ValueType", name: str) -> None:
    line = permissions.denial(_AGENT, kind, name).metadata["needed"]
    key = permissions.KEYS[kind]
    assert yaml.safe_load(line) == {"permissions": {key: [*permissions.held(_AGENT, kind), name]}}
    assert f"`{line}`" in permissions.denial(_AGENT, kind, name).message


def test_a_kind_that_there_is_not() -> None:
    with pytest.raises(InvalidArgument, match="agents, models, topics, tools, egress, secrets"):
        permissions.require(_AGENT, proto.PERMISSION_KIND_UNSPECIFIED, "x")
