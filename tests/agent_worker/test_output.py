"""What is printed arrives line by line, and a disk that is full raises nothing."""

import os
from pathlib import Path

import pytest

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


def test_other_failures_are_raised() -> None:
    descriptor = os.open("/dev/null", os.O_WRONLY)
    stream = output.lines(descriptor)
    os.close(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        print("lost", file=stream, flush=True)
    with pytest.raises(OSError, match="Bad file descriptor"):
        stream.close()
