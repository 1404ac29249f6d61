"""Against a server that answers what no good provider would."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from agentruntime import errors
from agentruntime.oauth2.exchange import LONGEST_ANSWER_BYTES, ask

ANSWERS: dict[str, tuple[int, dict[str, str], bytes]] = {
    "/good": (200, {}, b'{"a": 1}'),
    "/refused": (400, {}, b'{"error": "invalid_grant"}'),
    "/elsewhere": (302, {"Location": "/good"}, b"{}"),
    "/long": (200, {}, b'{"a": "' + b"x" * LONGEST_ANSWER_BYTES + b'"}'),
    "/list": (200, {}, b"[1]"),
    "/html": (502, {}, b"<html>"),
    "/deep": (200, {}, b'{"a":' + b"[" * 100_000),
    "/packed": (200, {"Content-Encoding": "gzip"}, b"\x1f\x8b not"),
    "/empty": (200, {}, b""),
}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status, headers, body = ANSWERS[self.path]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


# A client that has heard enough hangs up.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_is_taken_for_an_answer(server: str) -> None:
    assert ask(f"{server}/good").content == {"a": 1}
    assert ask(f"{server}/refused").status == 400
    for path, why in (
        ("/elsewhere", "redirect"),
        ("/long", "more than 1 MiB"),
        ("/list", "without a JSON object"),
        ("/html", "HTTP 502 without"),
        ("/deep", "without a JSON object"),
        ("/packed", "without a JSON object"),
        ("/empty", "without a JSON object"),
    ):
        with pytest.raises(errors.Unavailable, match=why):
            ask(server + path)


def test_who_is_not_asked() -> None:
    with pytest.raises(errors.InvalidArgument, match="https"):
        ask("http://login.example.com/token")
    with pytest.raises(errors.Unavailable, match="refused"):
        ask("http://127.0.0.1:1/")
    with pytest.raises(errors.InvalidArgument, match="CA file"):
        ask("https://127.0.0.1:1/", ca_file="/nowhere.pem")
