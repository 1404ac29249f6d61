"""Who asks a registry, and what its answers mean: against a server that wants tokens, as the great registries do."""

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from agentruntime import errors
from agentruntime.names import ImageReference

from agent_pool.images.registry_session import RegistrySession, credentials


class Tokens(ThreadingHTTPServer):
    """Gives a token to whoever asks with the right words, and takes each token so often."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.host = f"127.0.0.1:{self.server_address[1]}"
        # What the token endpoint was asked, with the header of who asked.
        self.asked: list[tuple[dict[str, list[str]], str]] = []
        self.uses_of_a_token = 10
        self.left = 0
        self.status = 200


class _Handler(BaseHTTPRequestHandler):
    server: Tokens

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/token":
            self._give(parse_qs(url.query))
        elif self.headers.get("Authorization") == "Bearer t0ken" and self.server.left > 0:
            self.server.left -= 1
            self._say(self.server.status, {"errors": [{"code": "X", "message": "because"}]})
        else:
            challenge = f'Bearer realm="http://{self.server.host}/token",service="tests",scope="whatever"'
            self._say(401, {}, {"WWW-Authenticate": challenge})

    def do_POST(self) -> None:
        self._give(parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()))

    def _give(self, asked: dict[str, list[str]]) -> None:
        self.server.asked.append((asked, self.headers.get("Authorization", "")))
        self.server.left = self.server.uses_of_a_token
        self._say(200, {"token": "t0ken"})

    def _say(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[Tokens]:
    with Tokens() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def docker_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return tmp_path / "config.json"


def session(server: Tokens, actions: str = "pull") -> RegistrySession:
    return RegistrySession(ImageReference.parse(f"{server.host}/team/x:1"), actions)


def test_a_token_is_got_without_a_login_and_again_when_it_is_used_up(server: Tokens) -> None:
    server.uses_of_a_token = 2
    with session(server) as asking:
        for _ in range(3):
            assert asking.request("GET", "manifests/1").ok
    assert server.asked == [({"service": ["tests"], "scope": ["repository:team/x:pull"]}, "")] * 2


def test_logins_buy_tokens(server: Tokens, docker_config: Path) -> None:
    pair = base64.b64encode(b"me:pass").decode()
    docker_config.write_text(json.dumps({"auths": {server.host: {"auth": pair}}}))
    with session(server, "pull,push") as asking:
        asking.request("GET", "manifests/1")
    assert server.asked.pop() == (
        {"service": ["tests"], "scope": ["repository:team/x:pull,push"]},
        f"Basic {pair}",
    )
    docker_config.write_text(json.dumps({"auths": {server.host: {"identitytoken": "1d"}}}))
    with session(server) as asking:
        asking.request("GET", "manifests/1")
    asked, who = server.asked.pop()
    assert (asked["grant_type"], asked["refresh_token"], who) == (["refresh_token"], ["1d"], "")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (403, errors.Unauthenticated),
        (404, errors.ImageNotFound),
        (400, errors.FailedPrecondition),
        (429, errors.Unavailable),
        (503, errors.Unavailable),
    ],
)
def test_what_refusals_mean(server: Tokens, status: int, error: type[errors.AgentError]) -> None:
    server.status = status
    with session(server) as asking, pytest.raises(error, match="because"):
        asking.request("GET", "manifests/1")


def test_a_token_is_not_used_up_for_nothing(server: Tokens) -> None:
    server.uses_of_a_token = 0
    with session(server) as asking, pytest.raises(errors.Unauthenticated, match="as somebody who may"):
        asking.request("GET", "manifests/1")
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("reference", "base"),
    [
        ("localhost/x:1", "http://localhost/v2/x/"),
        ("127.8.9.1:5000/a/x", "http://127.8.9.1:5000/v2/a/x/"),
        ("[::1]:5000/x", "http://[::1]:5000/v2/x/"),
        ("r.example.com/x", "https://r.example.com/v2/x/"),
        ("10.0.0.1:5000/x", "https://10.0.0.1:5000/v2/x/"),
        ("docker.io/x", "https://registry-1.docker.io/v2/library/x/"),
        ("docker.io/me/x", "https://registry-1.docker.io/v2/me/x/"),
    ],
)
def test_https_but_for_this_machine(reference: str, base: str) -> None:
    with RegistrySession(ImageReference.parse(reference), "pull") as asking:
        assert asking.base == base


def test_docker_hub_s_login_has_its_old_name(docker_config: Path) -> None:
    auth = base64.b64encode(b"me:pass").decode()
    docker_config.write_text(json.dumps({"auths": {"https://index.docker.io/v1/": {"auth": auth}}}))
    assert credentials("docker.io")["username"] == "me"
    assert credentials("r.example.com") == {}


class Recorder(ThreadingHTTPServer):
    """Answers all requests alike, and keeps what it was asked."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        super().__init__(("127.0.0.1", 0), _Recording)
        self.host = f"127.0.0.1:{self.server_address[1]}"
        self.answer = (status, headers, body)
        # Path, header of who asks, body.
        self.asked: list[tuple[str, str, bytes]] = []


class _Recording(BaseHTTPRequestHandler):
    server: Recorder

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.server.asked.append((self.path, self.headers.get("Authorization", ""), body))
        status, headers, content = self.server.answer
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@contextlib.contextmanager
def recording(status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> Iterator[Recorder]:
    with Recorder(status, headers or {}, body) as recorder:
        thread = threading.Thread(target=recorder.serve_forever, daemon=True)
        thread.start()
        yield recorder
        recorder.shutdown()
        thread.join()


def log_in(docker_config: Path, host: str, **more: str) -> None:
    login = more or {"auth": base64.b64encode(b"me:pass").decode()}
    docker_config.write_text(json.dumps({"auths": {host: login}}))


def at(server: Recorder) -> RegistrySession:
    return RegistrySession(ImageReference.parse(f"{server.host}/x:1"), "pull")


def test_another_host_that_is_named_gets_no_password(docker_config: Path) -> None:
    basic = {"WWW-Authenticate": 'Basic realm="x"'}
    with recording(401, basic) as foreign, recording(307, {"Location": f"http://{foreign.host}/blob"}) as registry:
        log_in(docker_config, registry.host)
        for path in ("blobs/x", f"http://{foreign.host}/upload"):
            with at(registry) as asking, pytest.raises(errors.Unauthenticated):
                asking.request("GET", path)
    assert [who for _, who, _ in foreign.asked + registry.asked] == ["", "", ""]


def test_https_does_not_go_on_in_clear() -> None:
    with RegistrySession(ImageReference.parse("r.example.com/x:1"), "pull") as asking:
        for url in ("http://r.example.com/upload", "HTTP://r.example.com:443/upload"):
            with pytest.raises(errors.FailedPrecondition, match="over plain HTTP"):
                asking.request("PUT", url)


def bearer(realm: str) -> dict[str, str]:
    return {"WWW-Authenticate": f'Bearer realm="{realm}",service="tests"'}


def test_a_login_is_not_redirected(docker_config: Path) -> None:
    with (
        recording(200, {}, b"{}") as foreign,
        recording(307, {"Location": f"http://{foreign.host}/steal"}) as realm,
        recording(401, bearer(f"http://{realm.host}/token")) as registry,
    ):
        for login in ({"identitytoken": "1d"}, {}):
            log_in(docker_config, registry.host, **login)
            with at(registry) as asking, pytest.raises(errors.FailedPrecondition, match="answers no token"):
                asking.request("GET", "manifests/1")
        assert (len(realm.asked), foreign.asked) == (2, [])


def test_a_login_s_host_is_the_one_that_it_goes_to(docker_config: Path) -> None:
    for realm in ("http://evil.example.com\\@localhost/", "ftp://localhost/", "http://r.example.com/", ""):
        with recording(401, bearer(realm)) as registry, at(registry) as asking:
            log_in(docker_config, registry.host)
            with pytest.raises(errors.FailedPrecondition, match="over plain HTTP"):
                asking.request("GET", "manifests/1")


def test_a_netrc_is_not_read_after_a_redirect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password pass\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with recording(200) as foreign, recording(307, {"Location": f"http://{foreign.host}/blob"}) as registry:
        with at(registry) as asking:
            assert asking.request("GET", "blobs/x").ok
        assert foreign.asked == [("/blob", "", b"")]


def test_a_refusal_and_a_token_are_short() -> None:
    # Longer than what is sent: whoever reads it whole does not come to the end.
    endless = {"Content-Length": str(2**40)}
    start = b'{"errors": [], "token": "' + b"x" * 2**21
    with (
        recording(403, endless, start) as registry,
        at(registry) as asking,
        pytest.raises(errors.Unauthenticated, match="HTTP 403"),
    ):
        asking.request("GET", "manifests/1")
    with (
        recording(200, endless, start) as realm,
        recording(401, bearer(f"http://{realm.host}/token")) as registry,
        at(registry) as asking,
        pytest.raises(errors.FailedPrecondition, match="answers no token"),
    ):
        asking.request("GET", "manifests/1")
