"""What `context` says where it cannot be used; tests/conformance/test_system_calls.py uses it."""

import pytest
from agentruntime import calls, context, errors
from agentruntime._proto.uapi.v1 import system_calls_pb2 as proto


async def test_only_a_worker_makes_system_calls() -> None:
    for make in (lambda: context.agent("b"), lambda: context.blocking("b")):
        with pytest.raises(errors.FailedPrecondition, match="by a worker of the platform"):
            make()
    with pytest.raises(errors.FailedPrecondition):
        await context.self()


def test_plain_functions_are_told_what_is_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "address", "unix:/run/uapi/s")
    with pytest.raises(errors.FailedPrecondition, match=r"take context\.blocking\(name\)"):
        context.agent("b")


async def test_a_kind_that_there_is_not() -> None:
    with pytest.raises(errors.InvalidArgument, match="agents, models, topics, tools, egress, secrets"):
        await context.check("agent", "b")


def test_every_kind_of_the_contract_has_a_key() -> None:
    assert {proto.PERMISSION_KIND_UNSPECIFIED, *context.KINDS.values()} == set(proto.PermissionKind.values())
