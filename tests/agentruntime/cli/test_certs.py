"""`agent certs`: what is made, kept and made anew."""

import json
from pathlib import Path

from agentruntime import certificates
from agentruntime._proto.uapi.v1 import access_pb2
from agentruntime.certificates import Files
from agentruntime.home import Home

from tests.agentruntime.cli.conftest import Agent, Result
from tests.agentruntime.platform_services import Record


def made(result: Result) -> list[str]:
    """Names of the certificates that a command has made."""
    assert result.status == 0, result.err
    return [Path(each["cert"]).stem for each in json.loads(result.out)]


def names(stem: str) -> set[str]:
    directory = Home.default().certs
    return set(certificates.read_pair(Files(directory / f"{stem}.pem", directory / f"{stem}-key.pem")).names)


def test_init_makes_what_is_missing_and_keeps_what_is_good(agent_inside: Agent) -> None:
    assert made(agent_inside("certs", "init", "-o", "json")) == ["ca", "server", "gateway", "pool"]
    assert names("server") == {"localhost", "127.0.0.1", "::1"}
    assert names("gateway") == {certificates.GATEWAY}
    assert certificates.POOL in names("pool")
    assert made(agent_inside("certs", "init", "-o", "json")) == []
    # The pool's is not for the gateway's names.
    assert made(agent_inside("certs", "init", "--host", "a.example", "-o", "json")) == ["server"]
    assert made(agent_inside("certs", "init", "--pool-host", "b.example", "-o", "json")) == ["pool"]
    # Without a host, those that there were stay, also where a certificate has to be made anew.
    assert made(agent_inside("certs", "init", "--force", "-o", "json")) == ["ca", "server", "gateway", "pool"]
    assert ("a.example" in names("server"), "a.example" in names("pool")) == (True, False)
    assert ("b.example" in names("server"), "b.example" in names("pool")) == (False, True)
    (Home.default().certs / "server.pem").write_text("")
    lost = agent_inside("certs", "init")
    assert (lost.status, "say by --host which names it was for" in lost.err) == (19, True)
    assert made(agent_inside("certs", "init", "--host", "a.example", "-o", "json")) == ["server"]


def test_client_makes_a_certificate_that_says_who_calls(agent_inside: Agent) -> None:
    refused = agent_inside("certs", "client", "--name", "ci")
    assert (refused.status, "make one with `agent certs init`" in refused.err) == (19, True)
    agent_inside("certs", "init")
    assert made(agent_inside("certs", "client", "--name", "ci", "-o", "json")) == ["client-ci"]
    assert names("client-ci") == {"spiffe://agentruntime/client/ci"}
    agent_inside("certs", "client", "--agent", "my-agent", "--host", "agents.example.com")
    assert names("agent-my-agent") == {"spiffe://agentruntime/agent/my-agent", "agents.example.com"}
    for wrong, words in (
        (("--name", "a", "--agent", "b"), "give either --name NAME"),
        ((), "give either --name NAME"),
        (("--agent", "My Agent"), "My Agent"),
        (("--name", "a", "--host", "a b"), "'a b' is no host"),
    ):
        result = agent_inside("certs", "client", *wrong)
        assert result.status == 13
        assert words in result.err


def test_what_a_certificate_may_do_is_said_listed_and_taken_back(agent: Agent, record: Record) -> None:
    assert agent("certs", "grant", "spiffe://x/ci", "--agents", "a, b", "--role", "operate").out == (
        "spiffe://x/ci has the role operate for a, b\n"
    )
    assert agent("certs", "grant", "*", "--role", "none").out == "a certificate without a grant may do nothing\n"
    assert record.requests == [
        access_pb2.SetCertificateGrantRequest(uri="spiffe://x/ci", role=access_pb2.ROLE_OPERATE, agents=["a", "b"]),
        access_pb2.SetCertificateGrantRequest(uri="*"),
    ]
    rows = [line.split() for line in agent("certs", "grants").out.splitlines()]
    assert rows[1:] == [["*", "none", "-", "-"], ["spiffe://x/ci", "call", "a,b", "1970-01-01T00:00:00Z"]]
    taken_back = agent("certs", "ungrant", "spiffe://x/ci").out
    assert taken_back == "spiffe://x/ci has no grant of its own\na certificate without a grant may do nothing\n"
    for wrong in (("--role", "none", "--agents", "a"), ()):
        assert agent("certs", "grant", "spiffe://x/ci", *wrong).status == 13
