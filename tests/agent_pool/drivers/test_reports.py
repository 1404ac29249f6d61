"""What a worker says, and what an agent that has the worker's socket may say instead."""

import json
import socket
from collections.abc import Iterator

import pytest

from agent_pool.drivers.reports import MOST_BYTES, Reports


@pytest.fixture
def pair() -> Iterator[tuple[Reports, socket.socket]]:
    ours, theirs = socket.socketpair()
    reports = Reports(ours)
    with theirs:
        yield reports, theirs
    reports.close()


def test_it_listens_or_failed(pair: tuple[Reports, socket.socket]) -> None:
    reports, worker = pair
    worker.sendall(b'{"event": "failed", "error": "E", "traceback": "T"}\n{"event": "list')
    assert reports.hear()
    assert (reports.listening, reports.failure) == (False, {"error": "E", "traceback": "T"})
    worker.sendall(b'ening"}\n')
    reports.hear_out()
    assert reports.listening
    assert not reports.hung_up
    worker.close()
    assert not reports.hear()
    assert reports.hung_up


@pytest.mark.parametrize("line", [b"no json", b"3", b"[]", b"null", b'{"event": 7}', b"[" * 50_000, b"\xff\xfe"])
def test_nonsense_is_not_heard(pair: tuple[Reports, socket.socket], line: bytes) -> None:
    reports, worker = pair
    worker.sendall(line + b"\n" + json.dumps({"event": "listening"}).encode() + b"\n")
    reports.hear_out()
    assert reports.listening
    assert reports.failure == {}


@pytest.mark.parametrize("piece", [b"x" * 1000, b"{}\n" * 300])
def test_one_that_never_stops_is_not_heard_out(pair: tuple[Reports, socket.socket], piece: bytes) -> None:
    reports, worker = pair
    worker.setblocking(False)

    def fill() -> None:
        try:
            while True:
                worker.send(piece)
        except BlockingIOError:
            return

    taken = 0
    fill()
    while reports.hear():  # one piece a call, whatever is there
        taken += 1
        fill()
    assert reports.too_much
    assert taken <= MOST_BYTES // 100
    assert not reports.hung_up
    reports.hear_out()


def test_a_worker_that_was_taken_over_says_nothing() -> None:
    reports = Reports(None)
    assert not reports.hear()
    assert not reports.ask_to_drain(1.0)
    assert reports.hung_up


def test_draining_is_asked_for(pair: tuple[Reports, socket.socket]) -> None:
    reports, worker = pair
    assert reports.ask_to_drain(2.5)
    assert json.loads(worker.recv(1000)) == {"op": "drain", "grace_s": 2.5}
    worker.close()
    assert not reports.ask_to_drain(2.5)
