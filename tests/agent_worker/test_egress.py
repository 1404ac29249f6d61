"""Ways out: what a worker listens on, and to whom it hands that."""

import os
import socket
import textwrap
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from agentruntime import egress as ways
from agentruntime.launch import KERNEL_DIR, SandboxSpec

from agent_worker import egress, sandbox
from tests.agent_worker import templates
from tests.agent_worker.test_sandbox import ANYTHING
from tests.agent_worker.test_template import ask
from tests.waiting import until

ENTRIES = ["api.example.com:443", "localhost:5000", "10.1.2.3:80", "[2001:db8::1]:443"]
LISTENING = "answer = sum(open('/proc/net/' + each).read().count(' 0A ') for each in ('tcp', 'tcp6'))"
CONNECT = "import socket; answer = socket.create_connection(({host!r}, {port}), 5).getpeername()[0]"


@pytest.fixture(scope="module", params=["default", "restricted"])
def template(request: pytest.FixtureRequest) -> Iterator[templates.Template]:
    with templates.base() as base:
        bundle = templates.write_bundle(base.directory / "b", m=textwrap.dedent(ANYTHING))
        yield base.load("out", bundle, "m:A", egress=ENTRIES, system_calls=request.param)


def reaches(worker: templates.Worker, host: str, port: int, address: str) -> bool:
    return ask(worker, CONNECT.format(host=host, port=port)) == address


@pytest.mark.integration
@pytest.mark.root
def test_a_worker_listens_for_its_ways_out_and_nothing_else(template: templates.Template) -> None:
    for worker in (template.fork(1, spare=template.spare(1)), template.fork(2)):
        assert worker.event() == {"event": "listening"}
        assert ask(worker, LISTENING) == "4"
        for host, port, address in (
            ("api.example.com", 443, "127.1.0.1"),
            ("localhost", 5000, "127.0.0.1"),
            ("10.1.2.3", 80, "10.1.2.3"),
            ("2001:db8::1", 443, "2001:db8::1"),
        ):
            # The kernel takes a moment until it knows of an IPv6 address.
            until(partial(reaches, worker, host, port, address))
        for host, port in (("api.example.com", 80), ("10.1.2.3", 81), ("localhost", 443)):
            assert "refused" in ask(worker, CONNECT.format(host=host, port=port))
        assert "unreachable" in ask(worker, CONNECT.format(host="10.1.2.4", port=80))
        assert "gaierror" in ask(worker, CONNECT.format(host="www.example.com", port=443))
        # Made while it had capabilities, which are gone.
        assert "PermissionError" in ask(worker, "import socket; answer = socket.create_server(('127.0.0.1', 444))")


@pytest.mark.integration
@pytest.mark.root
def test_without_a_way_out_there_is_nothing_of_it() -> None:
    with templates.base() as base:
        bundle = templates.write_bundle(base.directory / "b", m=textwrap.dedent(ANYTHING))
        worker = base.load("none", bundle, "m:A").fork(1)
        assert worker.event() == {"event": "listening"}
        assert ask(worker, LISTENING) == "0"
        assert ask(worker, "import os; answer = os.path.exists('/etc/hosts')") == "False"


def test_with_the_hosts_network_there_is_nothing_to_be_opened() -> None:
    assert sandbox.ways_out(SandboxSpec(egress=ENTRIES)) == ENTRIES
    assert sandbox.ways_out(SandboxSpec(egress=ENTRIES, host_network=True)) == []
    assert sandbox.ways_out(SandboxSpec(egress=ENTRIES, isolated=False)) == []


def test_the_gateways_socket_is_where_workers_see_it() -> None:
    assert egress.GATEWAY.parent == Path(KERNEL_DIR)


def test_the_sockets_are_handed_over_again_whenever_the_gateway_was_away(tmp_path: Path) -> None:
    gateway = tmp_path / "e"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        way = ways.Way("localhost:1", "localhost", 1, "127.0.0.1")
        egress.keep_handed_over([egress.Opened(way, listener)], gateway)
        # It was not there at first, goes away without a word, and comes back at the same place.
        for _ in range(3):
            with closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as door:
                door.settimeout(10)
                door.bind(str(gateway))
                door.listen()
                channel, _ = door.accept()
                with channel:
                    channel.settimeout(10)
                    text, (descriptor,), _, _ = socket.recv_fds(channel, ways.LONGEST_BYTES, 1)
            gateway.unlink()
            assert text == b"localhost:1"
            with socket.socket(fileno=descriptor) as same:
                assert same.getsockname() == listener.getsockname()
                assert os.fstat(same.fileno()).st_ino == os.fstat(listener.fileno()).st_ino
