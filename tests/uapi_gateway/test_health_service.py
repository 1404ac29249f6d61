"""What each name's health is."""

import pytest
from grpc_health.v1 import health_pb2

from tests.uapi_gateway.test_registry import agent
from uapi_gateway.health_service import serving_status
from uapi_gateway.registry import Registry

NAMES = {
    "": "SERVING",
    "uapi.v1.AgentRegistry": "SERVING",
    "uapi.v1.AgentPool": "NOT_SERVING",
    "up": "SERVING",
    "up-01": "SERVING",
    "down": "NOT_SERVING",
    "asleep": "SERVING",
    "s.S": "SERVING",
    "s.Asleep": "SERVING",
    "s.Down": "NOT_SERVING",
    "s.Unknown": "SERVICE_UNKNOWN",
}


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_status(name: str, expected: str) -> None:
    registry = Registry()
    registry.put_pool_agent(agent("up", "up-01"))
    registry.put_pool_agent(agent("down", "down-01", ready=False, services=("s.S", "s.Down")))
    registry.put_pool_agent(agent("asleep", asleep=True, services=("s.Asleep",)))
    found = serving_status(registry, name, pool_known=False)
    assert health_pb2.HealthCheckResponse.ServingStatus.Name(found) == expected


def test_the_pools_services_follow_the_pool() -> None:
    assert serving_status(Registry(), "uapi.v1.AgentPool", pool_known=True) == 1
