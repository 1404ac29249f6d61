"""TLS as an operator turns it on: between two network namespaces, which stand for two machines."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from agentruntime.home import Home

from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.root]
ADDRESS, OTHER_ADDRESS = "10.99.0.1", "10.99.0.2"
FREE_PORTS = ("--grpc-port", "0", "--http-port", "0")


@dataclass(frozen=True)
class Machine:
    """A network namespace, and a runtime directory of its own."""

    pid: int
    home: Home

    def alone(self) -> bool:
        """It has left the namespace of this process."""
        return Path(f"/proc/{self.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", "-t", str(self.pid), "-n", *argv],
            env={**os.environ, "UAPI_HOME": str(self.home.root)},
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    def agent(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return self.run(str(Path(sys.executable).with_name("agent")), *argv)

    def ok(self, *argv: str) -> str:
        done = self.agent(*argv)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def announced(self) -> dict[str, object]:
        return dict(json.loads(self.home.gateway_file.read_text()))


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine]]:
    """One for the platform and one for callers, with a wire between."""
    holders = [subprocess.Popen(["unshare", "-n", "sleep", "600"]) for _ in range(2)]
    with tempfile.TemporaryDirectory(prefix="uapi-t1-") as one, tempfile.TemporaryDirectory(prefix="uapi-t2-") as two:
        here, there = (
            Machine(holder.pid, Home(Path(root))) for holder, root in zip(holders, (one, two), strict=True)
        )
        try:
            until(lambda: here.alone() and there.alone())
            wire = ["ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", str(there.pid)]
            steps = [(here, wire)]
            for machine, device, address in ((here, "v0", ADDRESS), (there, "v1", OTHER_ADDRESS)):
                steps += [
                    (machine, ["ip", "addr", "add", f"{address}/24", "dev", device]),
                    (machine, ["ip", "link", "set", device, "up"]),
                    (machine, ["ip", "link", "set", "lo", "up"]),
                ]
            for machine, step in steps:
                done = machine.run(*step)
                assert done.returncode == 0, done.stderr
            yield here, there
        finally:
            here.agent("down")
            for holder in holders:
                holder.send_signal(signal.SIGKILL)
                holder.wait()


def test_a_platform_for_other_machines(machines: tuple[Machine, Machine]) -> None:
    here, there = machines
    refused = here.agent("up", "--host", "0.0.0.0", *FREE_PORTS)
    assert refused.returncode == 19
    assert "without TLS: anyone on the network could" in refused.stderr
    refused = here.agent("up", "--host", "0.0.0.0", "--tls", *FREE_PORTS)
    assert "make them with `agent certs init`" in refused.stderr

    here.ok("certs", "init", "--host", ADDRESS)
    here.ok("up", "--host", "0.0.0.0", "--tls", *FREE_PORTS)
    here.ok("run", "echo")
    port = str(here.announced()["grpc_address"]).rpartition(":")[2]
    endpoint, ca = f"https://{ADDRESS}:{port}", str(here.home.certs / "ca.pem")
    # On its own machine nothing has to be named.
    assert here.ok("--endpoint", f"localhost:{port}", "call", "echo", "here") == "here\n"

    reached = ("--endpoint", endpoint, "--ca", ca, "--api-key", here.home.token())
    assert there.ok(*reached, "call", "echo", "over the wire") == "over the wire\n"
    for more, words in (
        ((), "not know; name that CA's certificate by --ca FILE or UAPI_TLS_CA"),
        (("--ca", ca), "credential"),
    ):
        failed = there.agent("--endpoint", endpoint, *more, "call", "echo", "x")
        assert failed.returncode != 0
        assert words in failed.stderr
        assert failed.stderr.count("\n") == 1


def test_run_says_how_the_platform_serves_tls(machines: tuple[Machine, Machine]) -> None:
    here, _ = machines
    here.ok("certs", "init")
    cert = str(here.home.certs / "server.pem")
    here.ok("run", "echo", "--tls", "--cert", cert)
    assert here.announced()["tls"] == {
        "cert": cert, "key": str(here.home.certs / "server-key.pem"), "ca": "",
    }  # fmt: skip
    here.ok("run", "echo", "--tls", "--cert", cert)
    other = str(here.home.certs / "pool.pem")
    refused = here.agent("run", "echo", "--tls", "--cert", other)
    assert refused.returncode == 19
    assert f"not with {other}; end it with `agent down`, then start it with" in refused.stderr
    here.ok("down")
    here.ok("up", *FREE_PORTS)
    refused = here.agent("run", "echo", "--tls", "--cert", cert)
    assert refused.stderr.endswith(
        f"and without TLS; end it with `agent down`, then start it with `agent up --tls --cert {cert}`\n"
    )
    certificates = [line for line in here.ok("doctor").splitlines() if line.startswith("certificate ")]
    assert len(certificates) == 4
    assert all(" ok " in line for line in certificates)
