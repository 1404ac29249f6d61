"""Who may ask the HTTP port."""

import pytest

from uapi_gateway.http.guard import Door, allowed


@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1:8080", "[::1]:8080", "LOCALHOST:8080"])
@pytest.mark.parametrize("origin", [None, "http://localhost:8080", "http://127.0.0.1:8080"])
def test_this_machine_may(host: str, origin: str | None) -> None:
    assert allowed(host, origin, Door(8080))


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("", None),
        ("localhost", None),
        ("localhost:8081", None),
        ("evil.example:8080", None),
        ("127.0.0.1.evil.example:8080", None),
        ("localhost:8080@evil.example", None),
        ("localhost:port", None),
        ("[::1", None),
        ("localhost:8080", ""),
        ("localhost:8080", "null"),
        ("localhost:8080", "http://evil.example"),
        ("localhost:8080", "https://localhost:8080"),
        ("localhost:8080", "http://localhost:3000"),
    ],
)
def test_others_may_not(host: str, origin: str | None) -> None:
    assert not allowed(host, origin, Door(8080))


def test_port_80_need_not_be_written() -> None:
    assert allowed("localhost", "http://localhost", Door(80))


@pytest.mark.parametrize("door", [Door(8080, tls=True), Door(8080, tls=True, open=True), Door(8080, open=True)])
def test_other_machines_may_by_any_name_but_from_no_other_site(door: Door) -> None:
    scheme = "https" if door.tls else "http"
    assert allowed("agents.example.com:8080", None, door)
    assert allowed("agents.example.com", f"{scheme}://Agents.example.com", door)
    for origin in ("https://evil.example", "null", "", f"{scheme}://agents.example.com:1"):
        assert not allowed("agents.example.com:8080", origin, door)
