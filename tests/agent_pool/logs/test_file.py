"""Lines forward and backward, and files with holes at their front."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from agent_pool.logs import file

TEXTS = strategies.lists(strategies.binary(max_size=40).map(lambda raw: raw.replace(b"\n", b"")), max_size=60)


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    opened = os.open(tmp_path / "a.log", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    yield opened
    os.close(opened)


def all_lines(descriptor: int, start: int, end: int) -> list[bytes]:
    return [raw for _, batch in file.forward(descriptor, start, end) for raw in batch]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXTS, strategies.booleans(), strategies.integers(1, 30))
def test_both_ways_give_the_same_lines(descriptor: int, texts: list[bytes], finished: bool, chunk: int) -> None:
    os.ftruncate(descriptor, 0)
    os.write(descriptor, b"\n".join(texts) + (b"\n" if finished and texts else b""))
    end = os.fstat(descriptor).st_size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file, "_CHUNK_BYTES", chunk)
        ahead = all_lines(descriptor, 0, end)
        back = [raw for batch in file.backward(descriptor, 0, end) for raw in reversed(batch)]
    expected = b"\n".join(texts) + (b"\n" if finished and texts else b"")
    assert ahead == expected.removesuffix(b"\n").split(b"\n") if expected else ahead == []
    assert back[::-1] == ahead


def test_a_trimmed_file_keeps_its_positions(descriptor: int) -> None:
    text = b"".join(b"line %d\n" % n for n in range(20_000))
    os.write(descriptor, text)
    cut = file.next_line(descriptor, 100_001, len(text))
    file.trim(descriptor, cut)
    assert os.fstat(descriptor).st_size == len(text)
    assert len(text) - cut <= file.held_bytes(descriptor) < len(text) - cut + 65536
    start, end = file.kept(descriptor, 10**9)
    kept = all_lines(descriptor, start, end)
    assert kept[0].lstrip(b"\0") == text[cut:].split(b"\n")[0]
    assert kept[1:] == text[cut:].split(b"\n")[1:-1]


def test_only_so_much_is_kept(descriptor: int) -> None:
    os.write(descriptor, b"one\ntwo\nthree\n")
    assert file.kept(descriptor, 10) == (4, 14)
    assert file.kept(descriptor, 8) == (8, 14)
    assert file.kept(descriptor, 100) == (0, 14)


def test_a_file_that_an_agent_made_huge_is_not_read_through(descriptor: int) -> None:
    os.write(descriptor, b"one\n")
    os.ftruncate(descriptor, 2**40)
    os.write(descriptor, b"two\n")
    start, end = file.kept(descriptor, 10**6)
    assert end - start < 10**6
    assert [raw.lstrip(b"\0") for raw in all_lines(descriptor, start, end)] == [b"two"]


def test_where_no_hole_can_be_made_the_file_is_emptied(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    os.write(descriptor, b"x\n" * 1000)
    monkeypatch.setattr(file, "_PUNCH_HOLE", 0x4000)  # no such operation: EOPNOTSUPP
    file.trim(descriptor, 500)
    assert os.fstat(descriptor).st_size == 0


def test_trimming_is_not_writing(descriptor: int) -> None:
    os.write(descriptor, b"x\n" * 100_000)
    os.utime(descriptor, (7, 8))
    file.trim(descriptor, 150_000)
    assert os.fstat(descriptor).st_mtime == 8


def test_a_file_grown_too_long_begins_anew(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "_LONGEST_FILE_BYTES", 1000)
    os.write(descriptor, b"x\n" * 1000)
    file.trim(descriptor, 500)
    assert os.fstat(descriptor).st_size == 0


def test_a_log_that_is_trimmed_beyond_its_end_of_a_moment_ago(
    descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.write(descriptor, b"x\n" * 1000)
    monkeypatch.setattr(file, "first_data", lambda *_: 5000)
    assert file.kept(descriptor, 500) == (2000, 2000)


def test_whole_lines(descriptor: int) -> None:
    os.write(descriptor, b"one\ntwo\nhal")
    assert file.whole_until(descriptor, 11) == 8
    assert file.next_line(descriptor, 1, 11) == 4
    assert file.next_line(descriptor, 9, 11) == 11


STEPS = strategies.lists(
    strategies.one_of(TEXTS, strategies.integers(0, 4000).map(lambda bytes_: -bytes_)), min_size=1, max_size=8
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS, strategies.integers(1, 5000))
def test_what_is_kept_is_always_the_end(descriptor: int, steps: list[list[bytes] | int], max_bytes: int) -> None:
    """Whatever is appended and trimmed in whatever order."""
    os.ftruncate(descriptor, 0)
    written: list[bytes] = []
    for step in steps:
        if isinstance(step, list):
            more = [b"%d " % len(written) + text for text in step]
            written += more
            os.write(descriptor, b"".join(text + b"\n" for text in more))
        else:
            end = os.fstat(descriptor).st_size
            file.trim(descriptor, file.next_line(descriptor, max(0, end + step), end) or 1)
        start, end = file.kept(descriptor, max_bytes)
        found = all_lines(descriptor, start, end)
        assert found == written[len(written) - len(found) :]
        assert end - start <= max_bytes
