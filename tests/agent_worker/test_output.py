"""What is printed arrives line by line, and a disk that is full raises nothing."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies

from agent_worker import output


def test_a_finished_line_is_there_at_once(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    stream = output.lines(descriptor)
    stream.write("one\ntw")
    assert (tmp_path / "log").read_text().startswith("one\n")
    stream.close()
    assert (tmp_path / "log").read_text() == "one\ntw"
    os.close(descriptor)


def test_a_full_disk_raises_nothing() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    stream = output.lines(descriptor)
    print("lost" * 10_000, file=stream, flush=True)
    stream.close()
    os.close(descriptor)


def test_a_line_that_a_full_disk_tore_stays_alone(tmp_path: Path) -> None:
    room = [len(b'{"event"'), 0, 10_000]
    write = io.FileIO.write

    class Disk(output._Log):
        def _put(self, data: bytes) -> int:  # type: ignore[override]  # never anything else here
            left = room.pop(0)
            return write(self, data[:left]) if left else 0

    with Disk(tmp_path / "log", "wb") as log:
        log.wrapping = output.Wrapping({})
        for event in (b"torn\n", b"lost\n", b"whole\n"):
            assert log.write(event) == len(event)
    first, second = (tmp_path / "log").read_bytes().splitlines()
    assert first == b'{"event"'
    assert json.loads(second)["event"] == "whole"


def test_other_failures_are_raised() -> None:
    descriptor = os.open("/dev/null", os.O_WRONLY)
    stream = output.lines(descriptor)
    os.close(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        print("lost", file=stream, flush=True)
    with pytest.raises(OSError, match="Bad file descriptor"):
        stream.close()


def objects(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


def test_bare_lines_become_objects() -> None:
    wrapping = output.Wrapping({"worker_id": "a-01", "agent": "a"})
    assert wrapping.feed(b"hel") == b""
    (entry,) = objects(wrapping.feed(b"lo \xff\n\n"))
    assert entry.pop("time").endswith("Z")
    assert entry == {"event": "hello \\xff", "level": "info", "worker_id": "a-01", "agent": "a"}
    assert wrapping.feed(b"rest") == b""
    assert objects(wrapping.finish())[0]["event"] == "rest"


def test_objects_are_completed_not_wrapped() -> None:
    wrapping = output.Wrapping({"worker_id": "a-01", "agent": "a"})
    whole = (
        b'{"event": "x", "level": "debug", "time": "2026-01-01T00:00:00Z", "worker_id": "w", "agent": "b", "n": 1}\n'
    )
    assert wrapping.feed(whole) == whole
    (entry,) = objects(wrapping.feed(b'{"msg": "hi", "level": 30}\n'))
    assert (entry["event"], entry["level"], entry["msg"], entry["agent"]) == ("hi", "30", "hi", "a")
    (entry,) = objects(wrapping.feed(b"{" * 5000 + b"\n"))
    assert entry["level"] == "info"


def test_a_traceback_is_one_object() -> None:
    wrapping = output.Wrapping({"worker_id": "a-01", "agent": "a"})
    code = "try: 1/0\nexcept Exception:\n raise ExceptionGroup('several', [ValueError('one'), KeyError('two')])"
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).stderr
    entries = objects(b"".join(wrapping.feed(line) for line in text.splitlines(keepends=True)))
    assert [entry["level"] for entry in entries] == ["error", "error"]
    assert entries[0]["event"] == "ZeroDivisionError: division by zero"
    assert "ExceptionGroup: several" in entries[1]["exception"]
    assert "During handling" in entries[1]["exception"]
    assert entries[1]["event"] == "KeyError: 'two'"
    assert objects(wrapping.feed(b"after\n"))[0]["event"] == "after"


@given(strategies.lists(strategies.binary()))
def test_anything_becomes_objects(pieces: list[bytes]) -> None:
    wrapping = output.Wrapping({"worker_id": "a-01", "agent": "a"})
    data = b"".join(wrapping.feed(piece) for piece in pieces) + wrapping.finish()
    assert all({"time", "level", "event", "worker_id", "agent"} <= entry.keys() for entry in objects(data))


def test_a_huge_line_is_kept_in_pieces() -> None:
    wrapping = output.Wrapping({})
    entries = objects(wrapping.feed(b"x" * 2**20) + wrapping.finish())
    assert "".join(entry["event"] for entry in entries) == "x" * 2**20
    assert len(entries) > 2


def test_a_stream_from_before_is_wrapped_too(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    stream = output.lines(descriptor)
    try:
        output.wrap(worker_id="a-01", agent="a")
        print("one", file=stream)
        stream.buffer.write(b"\xfe\n")
        stream.write("half")
        stream.flush()
        output.finish()
    finally:
        stream.close()
        os.close(descriptor)
    assert [entry["event"] for entry in objects((tmp_path / "log").read_bytes())] == ["one", "\\xfe", "half"]
