"""`agent status` and `agent doctor` of a platform that others can listen to."""

import pytest
from agentruntime._proto.uapi.v1 import agent_gateway_pb2 as pb
from agentruntime.cli.status import plaintext_address

from tests.agentruntime.cli.conftest import Agent
from tests.agentruntime.platform_services import Record


@pytest.mark.parametrize(
    ("address", "open_"),
    [
        ("127.0.0.1:50051", False),
        ("[::1]:50051", False),
        ("http://127.0.0.1:8080", False),
        ("unix:/run/gateway.sock", False),
        ("https://0.0.0.0:50051", False),
        ("0.0.0.0:50051", True),
        ("[::]:50051", True),
        ("http://10.0.0.7:8080", True),
    ],
)
def test_addresses(address: str, open_: bool) -> None:
    processes = [pb.ProcessStatus(name="pool"), pb.ProcessStatus(name="gateway", addresses=[address])]
    assert plaintext_address(pb.GetStatusResponse(processes=processes)) == (address if open_ else "")


@pytest.mark.parametrize("command", ["status", "doctor"])
def test_a_platform_that_others_can_listen_to_says_so(agent: Agent, record: Record, command: str) -> None:
    said = agent(command)
    assert (said.status, "TLS" in said.out + said.err) == (0, False)
    record.addresses = ["0.0.0.0:50051"]
    said = agent(command)
    assert (said.status, "no TLS" in said.out + said.err) == (0, True)
    assert "0.0.0.0:50051" in said.out + said.err
