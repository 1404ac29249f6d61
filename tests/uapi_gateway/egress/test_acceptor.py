import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from tests.waiting import until
from uapi_gateway.egress.acceptor import MOST_A_SECOND, Acceptor

Make = Callable[..., tuple[Acceptor, list[tuple[str, socket.socket]]]]


@pytest.fixture
def make() -> Iterator[Make]:
    with ExitStack() as stack:

        def made(*slots: threading.Semaphore) -> tuple[Acceptor, list[tuple[str, socket.socket]]]:
            taken: list[tuple[str, socket.socket]] = []

            def take(name: str, connection: socket.socket) -> None:
                taken.append((name, connection))
                stack.callback(connection.close)

            acceptor = Acceptor(take, list(slots))
            stack.callback(acceptor.join, 5)
            stack.callback(acceptor.force)
            stack.callback(acceptor.end)
            return acceptor, taken

        yield made


class Asked(threading.Semaphore):
    """Tells that somebody has asked for a slot."""

    def __init__(self) -> None:
        super().__init__(0)
        self.asked = threading.Event()

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        self.asked.set()
        return super().acquire(blocking, timeout)


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def test_it_accepts_on_what_it_is_given_and_can_be_used_again_after(make: Make) -> None:
    with listening() as worker:
        for _ in range(2):
            acceptor, taken = make()
            acceptor.give("a:1", os.dup(worker.fileno()))
            with socket.create_connection(worker.getsockname()) as client:
                until(partial(list, taken))
                [(name, connection)] = taken
                assert name == "a:1"
                assert not connection.getblocking()
                connection.send(b"x")
                assert client.recv(1) == b"x"
            acceptor.end()
            acceptor.join(5)
            assert acceptor.ended


def test_another_socket_takes_the_place_of_that_of_the_same_name(make: Make) -> None:
    acceptor, taken = make()
    with listening() as first, listening() as second:
        for worker in (first, second):
            acceptor.give("a:1", os.dup(worker.fileno()))
        with socket.create_connection(second.getsockname()), socket.create_connection(first.getsockname()):
            until(lambda: taken)
            assert taken[0][1].getsockname() == second.getsockname()


def test_what_does_not_listen_is_closed(make: Make) -> None:
    acceptor, taken = make()
    with listening() as good, ExitStack() as stack:
        connected = stack.enter_context(socket.create_connection(good.getsockname()))
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind("")
        unix.listen()
        for bad in (connected, unix, stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))):
            acceptor.give("bad:1", os.dup(bad.fileno()))
        reader, writer = os.pipe()
        acceptor.give("bad:2", writer)
        assert os.read(reader, 1) == b""  # its last writer is gone
        os.close(reader)
        acceptor.give("good:1", os.dup(good.fileno()))
        until(lambda: taken)
    assert {name for name, _ in taken} == {"good:1"}


def test_no_more_are_taken_than_there_are_slots(make: Make) -> None:
    slots, all_slots = threading.Semaphore(2), threading.Semaphore(3)
    acceptor, taken = make(slots, all_slots)
    with listening() as worker, ExitStack() as stack:
        acceptor.give("a:1", os.dup(worker.fileno()))
        for _ in range(4):
            stack.enter_context(socket.create_connection(worker.getsockname()))
        until(lambda: len(taken) == 2)
        assert not slots.acquire(timeout=0.3)
        assert len(taken) == 2
        for each in (slots, all_slots):
            each.release()
        until(lambda: len(taken) == 3)
        # It ends although it waits.
        acceptor.end()
        acceptor.join(5)
        assert acceptor.ended


def test_a_worker_that_connects_in_a_loop_is_slowed_down(make: Make) -> None:
    acceptor, taken = make()
    with listening() as worker, ExitStack() as stack:
        worker.listen(MOST_A_SECOND + 10)
        for _ in range(MOST_A_SECOND + 10):
            stack.enter_context(socket.create_connection(worker.getsockname()))
        began_s = time.monotonic()
        acceptor.give("a:1", os.dup(worker.fileno()))
        until(lambda: len(taken) == MOST_A_SECOND + 10)
        assert time.monotonic() - began_s > 0.9


def test_a_worker_that_takes_the_connection_itself_holds_up_only_its_own_thread(make: Make) -> None:
    slots = Asked()
    hostile, _ = make(slots)
    honest, taken = make()
    with listening() as worker, listening() as other:
        hostile.give("a:1", os.dup(worker.fileno()))
        until(lambda: not os.get_blocking(worker.fileno()))
        with socket.create_connection(worker.getsockname()):
            assert slots.asked.wait(10)
            # Whether it blocks is the worker's to say, and what there was to be accepted is gone.
            os.set_blocking(worker.fileno(), True)
            worker.accept()[0].close()
        slots.release()
        until(lambda: slots._value == 0)
        honest.give("b:1", os.dup(other.fileno()))
        with socket.create_connection(other.getsockname()):
            until(lambda: taken)
        hostile.end()
        hostile.join(0.5)
        assert not hostile.ended
        hostile.force()
        hostile.join(5)
        assert hostile.ended
