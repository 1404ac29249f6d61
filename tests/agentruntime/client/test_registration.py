"""Registration data and leases."""

from typing import Any

import pytest
from agentruntime import errors
from agentruntime._proto.uapi.v1 import agent_registry_pb2 as registry_pb2
from agentruntime.client.registration import Lease, register_request

# As the user's document has it.
DATA = {
    "agent_id": "text-generator-01",
    "services": ["TextGenerationService"],
    "endpoint": "localhost:50051",
    "capabilities": ["text-generation"],
    "health_check": "http://localhost:8080/health",
}


def test_the_document_s_registration_data() -> None:
    registration = register_request(DATA, None).registration
    assert registration.agent_id == "text-generator-01"
    assert list(registration.services) == ["TextGenerationService"]
    assert registration.endpoint == "localhost:50051"
    assert list(registration.capabilities) == ["text-generation"]
    assert registration.health_check == "http://localhost:8080/health"


def test_a_lease_s_length() -> None:
    assert not register_request(DATA, None).HasField("lease_ttl")
    assert register_request(DATA, 1.5).lease_ttl.ToMilliseconds() == 1500


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"agent": "x"}, "its keys are agent_id"),
        ({"services": "TextGenerationService"}, "services"),
        ({"agent_id": 7}, "agent_id"),
        ({"agent_id": ""}, "lacks agent_id"),
        ({"endpoint": None, "agent_id": None}, "lacks agent_id and endpoint"),
    ],
)
def test_what_cannot_be_read(change: dict[str, Any], says: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=says):
        register_request({**DATA, **change}, None)


def granted(lease_id: str, ttl_s: float) -> registry_pb2.RegisterAgentResponse:
    response = registry_pb2.RegisterAgentResponse(lease_id=lease_id)
    response.lease_ttl.FromMilliseconds(round(ttl_s * 1000))
    return response


def test_a_lease_is_renewed_twice_before_it_runs_out() -> None:
    lease = Lease(register_request(DATA, None))
    lease.answered(granted("one", 30.0))
    assert lease.delay_s == pytest.approx(10.0)
    assert lease.request() == registry_pb2.KeepAliveRequest(lease_id="one")


def test_a_lost_lease_is_registered_again() -> None:
    lease = Lease(register_request(DATA, None))
    lease.answered(granted("one", 30.0))
    lease.failed(errors.LeaseNotFound("gone"))
    assert lease.request() == register_request(DATA, None)
    lease.answered(granted("two", 30.0))
    assert lease.request() == registry_pb2.KeepAliveRequest(lease_id="two")


def test_an_unreachable_gateway_is_asked_more_often_and_the_lease_kept() -> None:
    lease = Lease(register_request(DATA, None))
    lease.answered(granted("one", 30.0))
    delays = []
    for _ in range(8):
        lease.failed(errors.Unavailable("no"))
        delays.append(lease.delay_s)
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]
    assert lease.request() == registry_pb2.KeepAliveRequest(lease_id="one")
