"""Addresses and ports."""

import socket

import pytest
from agentruntime.errors import FailedPrecondition, InvalidArgument

from uapi_gateway.sockets import claimed, join, split_endpoint


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("localhost:50051", ("localhost", 50051)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
        ("[::1]:65535", ("::1", 65535)),
        ("https://agents.example.com:443", ("agents.example.com", 443)),
        ("unix:/run/a.sock", ("/run/a.sock", 0)),
    ],
)
def test_endpoints(text: str, parts: tuple[str, int]) -> None:
    assert split_endpoint(text) == parts


@pytest.mark.parametrize(
    "text",
    ["", "localhost", ":80", "h:0", "h:65536", "h:x", "h:-1", "h:²", "::1:80", "http://h:80", "a b:80", "é:80",
     "unix:", "unix:relative", "unix:/" + "x" * 107],
)  # fmt: skip
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(InvalidArgument, match="not an endpoint"):
        split_endpoint(text)


def test_join_writes_what_split_reads() -> None:
    for text in ("127.0.0.1:80", "[::1]:80"):
        assert join(*split_endpoint(text)) == text


def test_a_taken_port_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(FailedPrecondition, match=f"gRPC address 127.0.0.1:{port} is already in use") as refused,
            claimed("127.0.0.1", port, "gRPC"),
        ):
            pass
        assert refused.value.message.endswith("; `agent up --grpc-port 0 --http-port 0` takes free ports")


def test_two_claims_are_two_ports() -> None:
    with claimed("127.0.0.1", 0, "gRPC") as first, claimed("127.0.0.1", 0, "HTTP") as second:
        assert 0 < first != second > 0
        with pytest.raises(FailedPrecondition, match="in use"), claimed("127.0.0.1", first, "HTTP"):
            pass
