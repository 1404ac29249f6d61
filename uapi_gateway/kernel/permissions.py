"""What an agent may use: nothing but itself, and what `permissions:` in its agent.yaml says. Pure decisions."""

import json
import re
from collections.abc import Mapping
from typing import Final

import yaml
from agentruntime._proto.uapi.v1 import system_calls_pb2 as proto
from agentruntime.errors import InvalidArgument, PermissionDenied

from uapi_gateway.registry import Agent

ALL = "*"
# Their keys in agent.yaml.
KEYS: Final[Mapping["proto.PermissionKind.ValueType", str]] = {
    proto.PERMISSION_KIND_AGENT: "agents",
    proto.PERMISSION_KIND_MODEL: "models",
    proto.PERMISSION_KIND_TOPIC: "topics",
    proto.PERMISSION_KIND_TOOL: "tools",
    proto.PERMISSION_KIND_EGRESS: "egress",
    proto.PERMISSION_KIND_SECRET: "secrets",
}
# What YAML takes for a text without quotes, wherever it stands.
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*(:[0-9]+)?")


def held(agent: Agent, kind: "proto.PermissionKind.ValueType") -> tuple[str, ...]:
    """The names of a kind that it may use, as agent.yaml and operators wrote them."""
    permissions = agent.permissions
    names: tuple[str, ...] = getattr(permissions, KEYS[kind])
    if kind == proto.PERMISSION_KIND_EGRESS:
        names += tuple(name for name in permissions.operators_egress if name not in names)
    return names


def allowed(agent: Agent, kind: "proto.PermissionKind.ValueType", name: str) -> bool:
    """Whether it may use something."""
    if kind == proto.PERMISSION_KIND_AGENT and name == agent.agent_id:
        return True
    names = held(agent, kind)
    if kind == proto.PERMISSION_KIND_EGRESS:
        # Names of hosts are the same in upper case, RFC 4343; all of them are never meant.
        return name.lower() in (each.lower() for each in names)
    return ALL in names or name in names


def require(agent: Agent, kind: "proto.PermissionKind.ValueType", name: str) -> None:
    """Returns if it may use something.

    Raises:
        PermissionDenied: it may not; says the line of agent.yaml that would be needed.
        InvalidArgument: there is no such kind.
    """
    if kind not in KEYS:
        raise InvalidArgument(f"{kind} is no kind of permission; the kinds are {', '.join(KEYS.values())}")
    if not allowed(agent, kind, name):
        raise denial(agent, kind, name)


def denial(agent: Agent, kind: "proto.PermissionKind.ValueType", name: str) -> PermissionDenied:
    """The error of what it may not use. Does not tell whether there is such a thing."""
    key = KEYS[kind]
    line = f"permissions: {{{key}: [{', '.join(map(_written, (*held(agent, kind), name)))}]}}"
    what = name if name.isprintable() else json.dumps(name)
    return PermissionDenied(
        f"agent '{agent.agent_id}' may not use '{what}' of {key}; its agent.yaml would have to say `{line}`",
        reason="NOT_PERMITTED",
        metadata={"agent": agent.agent_id, "kind": key, "name": name, "needed": line},
    )


def _written(name: str) -> str:
    """As YAML reads it as that text."""
    # Of plain ones, some are no texts: no, on, null.
    if _PLAIN.fullmatch(name) and yaml.safe_load(name) == name:
        return name
    quoted: str = yaml.safe_dump(name, default_style='"', width=2**31)
    return quoted.strip()
