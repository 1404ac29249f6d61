"""Rotation under a writer that never stops, reading across parts, following, and retention."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent_pool.logs import LogPolicy, LogStore, rotation
from agent_pool.logs.store import LogFile, expired

WRITER = "import sys\nfor n in range(int(sys.argv[1])): sys.stdout.write(f'line {n}\\n'); sys.stdout.flush()"


@pytest.fixture
def store(tmp_path: Path) -> LogStore:
    return LogStore(tmp_path, LogPolicy(rotate_bytes=65536, keep_parts=100))


def write(store: LogStore, worker_id: str, text: str) -> None:
    descriptor = store.open("a", worker_id)
    os.write(descriptor, text.encode())
    os.close(descriptor)


def test_no_line_is_lost_while_it_is_rotated(store: LogStore) -> None:
    count = 40_000
    descriptor = store.open("a", "a-01")
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(count)], stdout=descriptor)
    os.close(descriptor)
    while writer.poll() is None:
        store.maintain(time.time())
    assert writer.returncode == 0
    store.maintain(time.time())
    assert len(rotation.parts(store.path("a", "a-01"))) >= 2
    assert [line.text for line in store.past("a", ["a-01"], "", None)] == [f"line {n}" for n in range(count)]


def test_rotation_of_little(store: LogStore) -> None:
    write(store, "a-01", "x\n")
    assert rotation.rotate(store.path("a", "a-01")) == 0
    write(store, "a-01", "")
    assert [line.text for line in store.past("a", ["a-01"], "", None)] == ["x"]


def test_without_collapse_the_file_is_truncated(store: LogStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "_collapse", lambda *_: False)
    text = "".join(f"line {n}\n" for n in range(20_000))
    write(store, "a-01", text)
    store.maintain(time.time())
    assert store.path("a", "a-01").stat().st_size == 0
    write(store, "a-01", "more\n")
    assert "".join(f"{line.text}\n" for line in store.past("a", ["a-01"], "", None)) == text + "more\n"


async def test_follow_across_a_rotation(store: LogStore) -> None:
    write(store, "a-01", "".join(f"old {n}\n" for n in range(10_000)))
    seen = []
    stream = store.stream("a", lambda: store.logs_of("a"), level="", tail=2, follow=True)
    async with asyncio.timeout(10):
        async for line in stream:
            seen.append(line.text)
            if line.text == "old 9999":
                write(store, "a-01", "new 0\nnew 1\nhal")
                store.maintain(time.time())
                write(store, "a-01", "f\n")
                write(store, "a-02", "another\n")
            if line.text == "another":
                break
    await stream.aclose()
    assert seen == ["old 9998", "old 9999", "new 0", "new 1", "half", "another"]


def test_levels_and_tails(store: LogStore) -> None:
    write(store, "a-01", '{"level": "error", "event": "bad"}\nbare\n')
    assert [line.level for line in store.past("a", ["a-01"], "", None)] == ["ERROR", "INFO"]
    assert [line.text for line in store.past("a", ["a-01"], "WARNING", None)] == [
        '{"level": "error", "event": "bad"}'
    ]
    assert store.past("a", ["a-01"], "", 0) == []
    assert store.last_words("a", "a-01").splitlines()[-1] == "bare"
    assert store.last_words("a", "a-09") == ""
    assert store.agent_of("a-01") == "a"
    assert store.agent_of("a-09") is None


def test_retention() -> None:
    policy = LogPolicy(keep_parts=2, keep_agent_bytes=100, keep_s=1000)
    live = LogFile(Path("w.log"), 50, 990, live=True)
    parts = [LogFile(Path(f"w.log.{n}"), 30, 990 - n, live=False) for n in (1, 2, 3)]
    assert expired([live, *parts], policy, now_s=1000) == [Path("w.log.2"), Path("w.log.3")]
    assert expired([live, parts[0]], policy, now_s=1000) == []
    assert expired([live, parts[0]], policy, now_s=5000) == [Path("w.log"), Path("w.log.1")]
