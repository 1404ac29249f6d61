"""Whether a call on the control socket may be made, where names of agents and of workers meet."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from agentruntime._proto.uapi.v1 import access_pb2 as access
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool
from agentruntime.errors import PermissionDenied

from tests.uapi_gateway.pool_service import deployment
from uapi_gateway.access import headers
from uapi_gateway.access.checks import Checks
from uapi_gateway.access.demand import POOL_NEEDS
from uapi_gateway.access.keys import Key
from uapi_gateway.access.policy import Policy
from uapi_gateway.deployments import from_deployment
from uapi_gateway.kernel.audit import AuditLog
from uapi_gateway.kernel.audit_store import Wanted
from uapi_gateway.registry import Registry

_KEYS = {
    agent: Key(agent, agent, access.ROLE_OPERATE, (agent,), public="", created_at=0.0) for agent in ("web", "web-01")
}
_CALLING = Key("caller", "caller", access.ROLE_CALL, ("*",), public="", created_at=0.0)


class Call:
    """Of a key's holder."""

    def __init__(self, key: str) -> None:
        self._told = ((headers.PRINCIPAL, f"key:{key}"), (headers.KEY, key))

    def invocation_metadata(self) -> Any:
        return self._told


@pytest_asyncio.fixture
async def checks(tmp_path: Path) -> AsyncIterator[Checks]:
    """Of a platform that runs the agent "web" with the worker "web-01"."""
    registry, audit = Registry(), AuditLog(tmp_path / "audit.db")
    registry.put_pool_agent(from_deployment(deployment("web", {"web-01": "unix:/w"})))
    try:
        yield Checks(registry, lambda: Policy(keys=_KEYS), audit)
    finally:
        await audit.close()


async def allowed(checks: Checks, method: str, request: Any, key: str) -> bool:
    call: Any = Call(key)
    try:
        await checks.check(*POOL_NEEDS[f"/uapi.v1.AgentPool/{method}"], request, call)
    except PermissionDenied:
        return False
    return True


@pytest.mark.parametrize(
    ("method", "request_", "by_web"),
    [
        ("RunAgent", pool.RunAgentRequest(image="x", agent="web-01"), False),
        ("RunAgent", pool.RunAgentRequest(image="team/web-01:1"), False),
        ("ScaleAgent", pool.ScaleAgentRequest(agent="web-01"), False),
        ("StopAgent", pool.StopAgentRequest(name="web-01"), True),
        ("UpdateAgent", pool.UpdateAgentRequest(name="web-01"), True),
        ("GetWorker", pool.GetWorkerRequest(worker_id="web-01"), True),
        ("DebugWorker", pool.DebugWorkerRequest(worker_id="web-01"), True),
    ],
)
async def test_an_agent_that_is_called_as_a_worker_is_another(
    checks: Checks, method: str, request_: Any, by_web: bool
) -> None:
    assert await allowed(checks, method, request_, "web") is by_web
    assert await allowed(checks, method, request_, "web-01") is not by_web


async def test_a_worker_is_its_agents_also_where_an_agent_is_called_so(tmp_path: Path) -> None:
    registry, audit = Registry(), AuditLog(tmp_path / "audit.db")
    registry.put_pool_agent(from_deployment(deployment("web", {"web-01": "unix:/w"})))
    registry.put_pool_agent(from_deployment(deployment("web-01", {})))
    both = Checks(registry, lambda: Policy(keys=_KEYS), audit)
    # As the pool finds them: by worker_id workers alone, by name an agent first.
    for method, request, whose in (
        ("DebugWorker", pool.DebugWorkerRequest(worker_id="web-01"), "web"),
        ("StopAgent", pool.StopAgentRequest(name="web-01"), "web-01"),
    ):
        assert [key for key in _KEYS if await allowed(both, method, request, key)] == [whose]
    await audit.close()


@pytest.mark.parametrize(
    ("method", "request_", "target"),
    [
        ("StopAgent", pool.StopAgentRequest(name="web"), "web"),
        ("StopAgent", pool.StopAgentRequest(name="web-01"), "web"),
        ("RunAgent", pool.RunAgentRequest(image="team/other:8"), "other"),
        ("RunAgent", pool.RunAgentRequest(image="No Image"), ""),
        # It never says what it wants.
        ("DebugWorker", None, ""),
    ],
)
async def test_what_was_wanted_is_recorded_of_those_who_may_nothing(
    tmp_path: Path, method: str, request_: Any, target: str
) -> None:
    registry, audit = Registry(), AuditLog(tmp_path / "audit.db")
    registry.put_pool_agent(from_deployment(deployment("web", {"web-01": "unix:/w"})))
    checks = Checks(registry, lambda: Policy(keys={_CALLING.key_id: _CALLING}), audit)

    async def first() -> bytes | None:
        if request_ is None:
            await asyncio.Event().wait()
        return bytes(request_.SerializeToString())

    call: Any = Call("caller")
    with pytest.raises(PermissionDenied, match="the role operate for an agent"):
        await checks.admit(*POOL_NEEDS[f"/uapi.v1.AgentPool/{method}"], first(), call)
    [record] = await audit.read(Wanted())
    assert (record.entry.principal, record.entry.action) == ("key:caller", f"AgentPool/{method}")
    assert (record.entry.outcome, record.entry.target) == ("denied", target)
    await audit.close()
