"""Which grants certificates can be given."""

import pytest
from agentruntime import certificates
from agentruntime._proto.uapi.v1 import access_pb2 as proto
from agentruntime.errors import InvalidArgument

from uapi_gateway.access.certified import Certified, wanted

CI = "spiffe://agentruntime/client/ci"


def test_a_grant_is_as_it_is_asked_for() -> None:
    assert wanted(CI, proto.ROLE_OPERATE, ("a", "b", "a"), 1.0) == Certified(CI, proto.ROLE_OPERATE, ("a", "b"), 1.0)
    assert wanted(CI, proto.ROLE_UNSPECIFIED, ("a",), 1.0).role == proto.ROLE_CALL
    assert wanted("*", proto.ROLE_UNSPECIFIED, (), 1.0) == Certified("*", proto.ROLE_UNSPECIFIED, (), 1.0)


@pytest.mark.parametrize(
    ("uri", "role", "agents", "why"),
    [
        ("", proto.ROLE_CALL, ("a",), "is named by its URI"),
        ("spiffe://a b", proto.ROLE_CALL, ("a",), "is named by its URI"),
        ("x" * 1025, proto.ROLE_CALL, ("a",), "is named by its URI"),
        ("spiffe://agentruntime/agent/writer", proto.ROLE_CALL, ("a",), "its agent.yaml says"),
        (certificates.POOL, proto.ROLE_CALL, ("a",), "calls nobody"),
        (CI, proto.ROLE_CALL, (), "which agents a certificate is for"),
        (CI, proto.ROLE_CALL, ("*", "a"), "stands for all agents"),
        (CI, proto.ROLE_CALL, ("No Agent",), "'No Agent' is not an agent name"),
        (CI, proto.ROLE_ADMINISTER, ("a",), "administer is for all agents"),
        (CI, 9, ("a",), "the role of a certificate is call, operate or administer"),
    ],
)
def test_what_can_be_no_grant(uri: str, role: int, agents: tuple[str, ...], why: str) -> None:
    with pytest.raises(InvalidArgument, match=why.replace("*", "[*]")):
        wanted(uri, role, agents, 1.0)
