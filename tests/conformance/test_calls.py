"""Calls: every shape of them, to one worker that stays."""

import itertools
import time
from collections.abc import Iterator

import pytest
from agentruntime import errors

from tests.conformance.stage import Stage
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.root]
NAME = "called"
LARGE_BYTES = 3 * 2**20


@pytest.fixture(scope="module")
def called(stage: Stage) -> Iterator[Stage]:
    """The agent `called`, one worker."""
    with stage.running(NAME):
        yield stage


def test_call(called: Stage) -> None:
    """A call is answered."""
    assert called.client.generate_text(NAME, "hello").text == "hello"
    assert called.agent("call", NAME, "hello").stdout.strip() == "hello"


def test_call_of_a_worker(called: Stage) -> None:
    """A worker is called by its own name, too."""
    assert called.client.generate_text(f"{NAME}-01", "hello").text == "hello"


def test_stream(called: Stage) -> None:
    """A stream's pieces arrive while it goes on."""
    code = """#
async def answer():
    yield "one"
    await asyncio.sleep(0.5)
    yield "two"
"""
    arrived = [(piece.text, time.monotonic()) for piece in called.client.stream_text(NAME, code)]
    texts = [(text, at) for text, at in arrived if text]
    assert [text for text, _ in texts] == ["one", "two"]
    assert texts[1][1] - texts[0][1] > 0.3


def test_large_message(called: Stage) -> None:
    """A message of 3 MB goes both ways."""
    payload = "x" * LARGE_BYTES
    assert called.client.generate_text(NAME, payload).text == payload


def test_deadline(called: Stage) -> None:
    """A deadline that passes ends the call, for its caller and in the worker."""
    code = """#
async def answer():
    try:
        await asyncio.sleep(60)
    finally:
        open("/tmp/late", "w").close()
    yield ""
"""
    with pytest.raises(errors.DeadlineExceeded):
        called.client.generate_text(NAME, code, timeout_s=3.0)
    until(lambda: called.ask(NAME, "answer = lambda: os.path.exists('/tmp/late')") == "True")


def test_cancel(called: Stage) -> None:
    """A stream that its caller leaves is cancelled in the worker."""
    code = """#
async def answer():
    try:
        while True:
            yield "more"
            await asyncio.sleep(0.01)
    finally:
        open("/tmp/left", "w").close()
"""
    stream = called.client.stream_text(NAME, code)
    assert [piece.text for piece in itertools.islice(stream, 3)] == ["more"] * 3
    stream.cancel()  # type: ignore[attr-defined]  # of the call that the iterator is
    until(lambda: called.ask(NAME, "answer = lambda: os.path.exists('/tmp/left')") == "True")


def test_failure(called: Stage) -> None:
    """What an agent raises reaches the caller without its inner text, and its log with the traceback."""
    with pytest.raises(errors.AgentError) as failure:
        called.ask(NAME, "def answer(): raise RuntimeError('a secret')")
    assert "a secret" not in str(failure.value)
    until(lambda: "RuntimeError: a secret" in called.agent("logs", NAME).stdout)
