"""Structured logs."""

import contextvars
import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from agentruntime import log, trace


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    log.configure("INFO", stream=stream, service="test")
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in ("asyncio", "grpc"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    structlog.reset_defaults()


def test_debug_is_not_asyncios_and_grpcs_own(lines: io.StringIO) -> None:
    log.configure("DEBUG", stream=lines)
    for name in ("asyncio", "grpc._cython.cygrpc", "mine"):
        logging.getLogger(name).debug("x")
    logging.getLogger("asyncio").warning("y")
    assert [json.loads(line)["logger"] for line in lines.getvalue().splitlines()] == ["mine", "asyncio"]


def test_both_kinds_of_logger_write_the_same_json(lines: io.StringIO) -> None:
    log.get("a").info("worker ready", worker_id="w-01")
    logging.getLogger("b").warning("%s left", 3)
    ours, theirs = (json.loads(line) for line in lines.getvalue().splitlines())
    assert (ours["event"], ours["worker_id"], ours["level"], ours["service"]) == (
        "worker ready",
        "w-01",
        "info",
        "test",
    )
    assert (theirs["event"], theirs["level"], theirs["logger"], theirs["service"]) == (
        "3 left",
        "warning",
        "b",
        "test",
    )
    assert ours["time"].endswith("Z")


def test_the_trace_is_in_each_line(lines: io.StringIO) -> None:
    def run() -> None:
        context = trace.enter(None)
        log.get("a").info("inside")
        assert json.loads(lines.getvalue())["trace_id"] == context.trace_id

    contextvars.copy_context().run(run)
    log.get("a").info("outside")
    assert "trace_id" not in json.loads(lines.getvalue().splitlines()[1])


def test_levels_and_tracebacks(lines: io.StringIO) -> None:
    log.get("a").debug("not shown")
    try:
        raise ValueError("inner")
    except ValueError:
        log.get("a").exception("failed")
    (line,) = lines.getvalue().splitlines()
    assert "ValueError: inner" in json.loads(line)["exception"]


def test_what_a_key_calls_a_secret_is_in_no_line(lines: io.StringIO) -> None:
    log.get("a").warning("refused", token="abc", headers={"Authorization": "Basic eHl6"}, tokens=3)
    logging.getLogger("b").warning("sent %s", "Bearer abcdefgh", extra={"api_key": "abc"})
    ours, theirs = (json.loads(line) for line in lines.getvalue().splitlines())
    assert (ours["token"], ours["headers"], ours["tokens"]) == ("[redacted]", {"Authorization": "[redacted]"}, 3)
    assert (theirs["event"], theirs["api_key"]) == ("sent [redacted]", "[redacted]")
