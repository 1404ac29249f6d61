"""Where a client connects."""

import json
import os

import pytest
from agentruntime import processes
from agentruntime.client.target import Target, resolve
from agentruntime.errors import InvalidArgument
from agentruntime.home import Home


@pytest.mark.parametrize(
    ("endpoint", "address", "secure", "local"),
    [
        ("localhost:50051", "localhost:50051", False, True),
        ("127.0.0.1:1", "127.0.0.1:1", False, True),
        ("[::1]:50051", "[::1]:50051", False, True),
        ("unix:/run/x.sock", "unix:/run/x.sock", False, True),
        ("uapi.example.com:50051", "uapi.example.com:50051", True, False),
        ("https://localhost:443", "localhost:443", True, True),
        ("http://gateway:50051/", "gateway:50051", False, False),
    ],
)
def test_endpoints(endpoint: str, address: str, secure: bool, local: bool) -> None:
    assert resolve(endpoint) == Target(address, secure, local, "", 30.0)


@pytest.mark.parametrize(
    "endpoint",
    ["localhost", "localhost:x", ":50051", "a:0", "a:65536", "ftp://a:1", "a b:1", "unix:", "://a:1", "a:1:2"],
)
def test_endpoints_refused(endpoint: str) -> None:
    with pytest.raises(InvalidArgument, match="is not an endpoint"):
        resolve(endpoint)


def test_the_default_is_the_platform_of_the_runtime_directory() -> None:
    home = Home.default()
    assert resolve().address == "localhost:50051"
    home.create()
    home.supervisor_file.write_text("{}")
    home.gateway_socket.touch()
    assert resolve().address == f"unix:{home.gateway_socket}"


def test_the_environment_and_arguments_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UAPI_ENDPOINT", "uapi.example.com:50051")
    monkeypatch.setenv("UAPI_AUTH_TOKEN", "secret")
    monkeypatch.setenv("UAPI_TIMEOUT", "5s")
    assert resolve() == Target("uapi.example.com:50051", True, False, "secret", 5.0)
    assert resolve("localhost:1", "other", 2.0) == Target("localhost:1", False, True, "other", 2.0)


def test_the_runtime_directory_s_token_goes_to_its_own_gateway_only() -> None:
    home = Home.default()
    home.create()
    home.token_file.write_text("uapi_own")
    home.gateway_file.write_text(json.dumps({"grpc_address": "127.0.0.1:7"}))

    def supervisor(pid: int, start_time: float) -> None:
        home.supervisor_file.write_text(json.dumps({"pid": pid, "start_time": start_time}))

    # Its socket needs none.
    assert resolve(f"unix:{home.gateway_socket}").token == ""
    assert resolve("127.0.0.1:7").token == ""
    supervisor(os.getpid(), 0.0)
    assert resolve("127.0.0.1:7").token == ""
    supervisor(os.getpid(), processes.start_time(os.getpid()))
    # `localhost` may have another address, and another program there.
    for endpoint in ("127.0.0.1:7", "localhost:7"):
        found = resolve(endpoint)
        assert (found.address, found.token) == ("127.0.0.1:7", home.token())
    for other in ("localhost:8", "[::1]:7", "unix:/other.sock", "uapi.example.com:7"):
        assert resolve(other).token == ""
    assert resolve("localhost:7", token="").token == ""


def test_no_token_crosses_a_network_in_the_clear() -> None:
    with pytest.raises(InvalidArgument, match="unencrypted"):
        resolve("http://gateway:50051", "secret")


def test_a_token_that_cannot_be_sent_is_refused_with_where_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("localhost:1", " uapi_a.b\r\n").token == "uapi_a.b"
    for wrong in ("uapi_a\r\nb", "uapi_\x00", "uapi_ä"):
        with pytest.raises(InvalidArgument, match="the token given to the client has line breaks"):
            resolve("localhost:1", wrong)
    monkeypatch.setenv("UAPI_AUTH_TOKEN", "uapi_a\nb\n")
    with pytest.raises(InvalidArgument, match="of --api-key or UAPI_AUTH_TOKEN"):
        resolve("localhost:1")


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
def test_absurd_timeouts(timeout_s: float) -> None:
    with pytest.raises(InvalidArgument):
        resolve("localhost:1", None, timeout_s)


def test_tls_is_spoken_to_the_runtime_directory_s_own_gateway_where_it_does() -> None:
    home = Home.default()
    home.create()
    own = {"pid": os.getpid(), "start_time": processes.start_time(os.getpid())}
    home.supervisor_file.write_text(json.dumps(own))
    tls = {"cert": str(home.certs / "server.pem"), "key": "", "ca": ""}
    announced = {"grpc_address": "0.0.0.0:7", "tls": tls}
    home.gateway_file.write_text(json.dumps(announced))
    ca = str(home.certs / "ca.pem")
    for endpoint in ("localhost:7", "https://localhost:7", "127.0.0.1:7", "https://127.0.0.1:7"):
        to = resolve(endpoint)
        assert (to.address, to.secure, to.ca) == (endpoint.removeprefix("https://"), True, ca)
        assert to.token == home.token()
    assert resolve("https://localhost:7", ca="/other.pem").ca == "/other.pem"
    in_clear = resolve("http://localhost:7")
    assert (in_clear.address, in_clear.secure, in_clear.token) == ("127.0.0.1:7", False, "")
    # Another certificate is not of the runtime directory's authority.
    tls["cert"] = "/etc/ssl/agents.pem"
    home.gateway_file.write_text(json.dumps(announced))
    assert (resolve("localhost:7").secure, resolve("localhost:7").ca) == (True, "")


def test_certificates_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, path in (("CA", "/ca"), ("CERT", "/cert"), ("KEY", "/key")):
        monkeypatch.setenv(f"UAPI_TLS_{name}", path)
    to = resolve("https://a.example:1")
    assert (to.ca, to.cert, to.key) == ("/ca", "/cert", "/key")
    # In plain text they are nobody's business.
    assert resolve("localhost:1").ca == ""
    monkeypatch.delenv("UAPI_TLS_KEY")
    with pytest.raises(InvalidArgument, match="belong together"):
        resolve("https://a.example:1")
