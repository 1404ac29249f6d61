import socket

import pytest

from uapi_gateway.egress import addresses


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1", "a loopback address"),
        ("127.255.1.2", "a loopback address"),
        ("::1", "a loopback address"),
        ("::ffff:127.0.0.1", "a loopback address"),
        ("::127.0.0.1", "a loopback address"),
        ("64:ff9b::7f00:1", "a loopback address"),
        ("2002:7f00:1::", "a loopback address"),
        ("169.254.169.254", "a link-local address"),
        ("::ffff:169.254.169.254", "a link-local address"),
        ("64:ff9b::a9fe:a9fe", "a link-local address"),
        ("fe80::1", "a link-local address"),
        ("fe80::1%2", "a link-local address"),
        ("::ffff:0:7f00:1", "a loopback address"),
        ("::ffff:0:a9fe:a9fe", "a link-local address"),
        ("64:ff9b:1::7f00:1", "a loopback address"),
        ("64:ff9b:1:7f00:0:100::", "a loopback address"),
        ("64:ff9b:1:7f:0:1::", "a loopback address"),
        ("64:ff9b:1:0:7f:0:100:0", "a loopback address"),
        ("64:ff9b:1::a9fe:a9fe", "a link-local address"),
        ("64:ff9b:1::5db8:d70e", ""),
        ("fd00:ec2::254", "the address of a cloud's metadata"),
        ("100.100.100.200", "the address of a cloud's metadata"),
        ("::ffff:100.100.100.200", "the address of a cloud's metadata"),
        ("fd00::1", ""),
        ("0.0.0.0", "no host's address"),
        ("0.1.2.3", "no host's address"),
        ("::", "no host's address"),
        ("::ffff:0.0.0.0", "no host's address"),
        ("224.0.0.1", "many hosts' address"),
        ("255.255.255.255", "many hosts' address"),
        ("ff02::1", "many hosts' address"),
        ("10.0.0.1", ""),
        ("93.184.215.14", ""),
        ("2606:2800::1", ""),
        ("64:ff9b::5db8:d70e", ""),
    ],
)
def test_closed(address: str, why: str) -> None:
    assert addresses.closed(address) == why


def test_is_own() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        # TEST-NET-3, RFC 5737: nothing is sent.
        try:
            any_socket.connect(("203.0.113.1", 9))
        except OSError:
            own = "127.0.0.1"  # a machine without a network
        else:
            own = any_socket.getsockname()[0]
    assert addresses.is_own(own)
    assert addresses.is_own(f"::ffff:{own}")
    assert addresses.is_own("127.8.9.10")
    assert not addresses.is_own("203.0.113.1")
    assert not addresses.is_own("2001:db8::1")


def test_is_own_does_not_depend_on_what_may_be_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    # As with net.ipv4.ip_nonlocal_bind=1.
    monkeypatch.setattr(socket.socket, "bind", lambda *_: None)
    assert not addresses.is_own("203.0.113.1")
