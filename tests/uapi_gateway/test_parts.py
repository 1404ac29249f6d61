"""What of the gateway's own is no agent's address."""

from pathlib import Path

import pytest
from agentruntime.home import Home

from uapi_gateway.parts import own_addresses
from uapi_gateway.settings import Settings
from uapi_gateway.sockets import Ports


@pytest.mark.parametrize(
    ("address", "own"),
    [
        ("127.0.0.1:50051", True),
        ("127.0.0.2:50051", True),
        ("[::1]:8080", True),
        ("[::ffff:127.0.0.1]:8080", True),
        ("0.0.0.0:8080", True),
        ("127.0.0.1:8081", False),
        ("203.0.113.1:50051", False),
        ("unix:/nowhere/s", False),
    ],
)
def test_both_ports_are_own_on_every_address_of_the_machine(tmp_path: Path, address: str, own: bool) -> None:
    is_own = own_addresses(Settings(root=tmp_path), Ports(50051, 8080))
    assert is_own(address) == own
    assert is_own(f"unix:{Home(tmp_path).pool_socket}")
