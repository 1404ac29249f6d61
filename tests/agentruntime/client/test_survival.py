"""What callers see of a gateway that is killed and started again, under load, with real processes."""

import asyncio
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from agentruntime import AsyncClient, Client, errors

from tests.waiting import until

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[3]
KILLS = 3
CALLERS = 8


class Killable:
    """The process of `killable.py`, at one address for all its lives."""

    def __init__(self, folder: Path) -> None:
        self.address = f"unix:{folder}/s"
        self._file = folder / "calls"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        argv = [sys.executable, "-m", "tests.agentruntime.client.killable", self.address, str(self._file)]
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "serves\n"

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    def calls(self) -> Counter[str]:
        """How often each call ran."""
        return Counter(self._file.read_text().split())


@pytest.fixture
def killable() -> Iterator[Killable]:
    # Not below tmp_path: a socket's path is short.
    with tempfile.TemporaryDirectory(prefix="uapi-kill-") as folder:
        gateway = Killable(Path(folder))
        gateway.start()
        try:
            yield gateway
        finally:
            gateway.kill()


def kill_again_and_again(gateway: Killable, answered: Callable[[], int]) -> None:
    for _ in range(KILLS):
        until_more(answered, 50)
        gateway.kill()
        gateway.start()
        started = time.monotonic()
        until_more(answered, 1)
        # Found again within a second of its start.
        assert time.monotonic() - started < 1.0


def until_more(answered: Callable[[], int], calls: int) -> None:
    enough = answered() + calls
    until(lambda: answered() >= enough)


def check(gateway: Killable, answered: list[str], failed: list[tuple[str, errors.AgentError]]) -> None:
    """Only calls that must not be repeated failed, each with a reason, and none of those ran twice."""
    ran = gateway.calls()
    assert not [call for call in answered if not ran[call]]
    assert {call.split("/")[0] for call, _ in failed} <= {"call", "once"}
    assert {error.reason for _, error in failed} <= {"CONNECTION_LOST"}
    assert len(failed) <= KILLS * CALLERS
    twice = {call for call, times in ran.items() if times > 1}
    assert {call.split("/")[0] for call in twice} <= {"text", "stream"}


def test_threads(killable: Killable) -> None:
    answered: list[str] = []
    failed: list[tuple[str, errors.AgentError]] = []
    done = threading.Event()

    def caller(client: Client, number: int) -> None:
        kind = ("text", "stream", "call", "once")[number % 4]
        count = 0
        while not done.is_set():
            count += 1
            call = f"{kind}/{number}/{count}"
            try:
                if kind == "stream":
                    # Only until its first piece: after that it is not begun anew.
                    next(client.stream_text("a", call))
                elif kind == "call":
                    client.call_agent(call, {"service": "S", "method": "M"})
                else:
                    client.generate_text("once" if kind == "once" else "a", call)
            except errors.AgentError as error:
                failed.append((call, error))
            else:
                answered.append(call)

    with Client(killable.address) as client:
        threads = [threading.Thread(target=caller, args=(client, number)) for number in range(CALLERS)]
        for thread in threads:
            thread.start()
        try:
            kill_again_and_again(killable, lambda: len(answered))
        finally:
            done.set()
            for thread in threads:
                thread.join()
    check(killable, answered, failed)


async def test_asyncio(killable: Killable) -> None:
    answered: list[str] = []
    failed: list[tuple[str, errors.AgentError]] = []
    done = asyncio.Event()

    async def caller(client: AsyncClient, number: int) -> None:
        kind = ("text", "stream", "call", "once")[number % 4]
        count = 0
        while not done.is_set():
            count += 1
            call = f"{kind}/{number}/{count}"
            try:
                if kind == "stream":
                    await anext(client.stream_text("a", call))
                elif kind == "call":
                    await client.call_agent(call, {"service": "S", "method": "M"})
                else:
                    await client.generate_text("once" if kind == "once" else "a", call)
            except errors.AgentError as error:
                failed.append((call, error))
            else:
                answered.append(call)

    async with AsyncClient(killable.address) as client:
        callers = [asyncio.create_task(caller(client, number)) for number in range(CALLERS)]
        try:
            await asyncio.to_thread(kill_again_and_again, killable, lambda: len(answered))
        finally:
            done.set()
            await asyncio.gather(*callers)
    check(killable, answered, failed)


def test_a_stream_that_is_cut_says_so(killable: Killable) -> None:
    with Client(killable.address) as client:
        pieces = client.stream_text("a", "x")
        next(pieces)
        killable.kill()
        with pytest.raises(errors.Unavailable) as caught:
            list(pieces)
        assert caught.value.reason == "CONNECTION_LOST"
        killable.start()
        assert client.generate_text("a", "again").text == "again"
