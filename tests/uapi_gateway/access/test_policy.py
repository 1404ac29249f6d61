"""Who may call which agent, as a table; and that Envoy's rules decide the same."""

import itertools
from typing import Any

import pytest
from agentruntime._proto.uapi.v1 import access_pb2 as proto

from tests.uapi_gateway.xds.walking import walk as walked
from uapi_gateway.access import headers, keys
from uapi_gateway.access.callers import caller_of
from uapi_gateway.access.certified import Certified
from uapi_gateway.access.keys import Key, Wanted
from uapi_gateway.access.policy import Policy, may_call, unmet
from uapi_gateway.registry import Demands
from uapi_gateway.xds.rules import http_rules, rules


def key(name: str, *agents: str, role: int = proto.ROLE_CALL) -> Key:
    return keys.mint(Wanted(name, role, agents), 1000.0)[1]


KEYS = {
    made.name: made
    for made in (
        key("one", "open"),
        key("two", "open", "by-key"),
        key("all", "*"),
        key("chosen", "*"),
        key("operator", "open", role=proto.ROLE_OPERATE),
        key("local", "*", role=proto.ROLE_ADMINISTER),
    )
}
DEMANDS = {
    "by-key": Demands(keys=("chosen", "two")),
    "by-id": Demands(keys=(KEYS["one"].key_id,)),
    "any-key": Demands(keys=("*",)),
    "tls": Demands(tls=True),
    "tls-key": Demands(tls=True, keys=("chosen",)),
    "client": Demands(oauth2_client_id="chat"),
}
CLIENT = "spiffe://agentruntime/client/"
CERTIFIED = {
    said.uri: said
    for said in (
        Certified(CLIENT + "limited", proto.ROLE_CALL, ("open", "tls", "any-key"), 1.0),
        Certified(CLIENT + "operator", proto.ROLE_OPERATE, ("unknown",), 1.0),
        Certified(CLIENT + "operates-all", proto.ROLE_OPERATE, ("*",), 1.0),
        Certified(CLIENT + "locked-out", proto.ROLE_UNSPECIFIED, (), 1.0),
    )
}
# What is said of certificates of which nothing else is.
OTHERS = (
    None,
    Certified("*", proto.ROLE_UNSPECIFIED, (), 1.0),
    Certified("*", proto.ROLE_CALL, ("unknown",), 1.0),
    Certified("*", proto.ROLE_OPERATE, ("*",), 1.0),
)
AGENTS = ("open", "unknown", "caller", "free", "other", *DEMANDS)


def policy(*, anonymous: bool = True, others: Certified | None = None) -> Policy:
    return Policy(
        keys={made.key_id: made for made in KEYS.values()},
        demands=DEMANDS,
        permitted={"caller": ("open", "by-key"), "free": ("*",)},
        anonymous=anonymous,
        certified={**CERTIFIED, **({"*": others} if others else {})},
    )


def walk(tree: Any, sent: dict[str, str]) -> bool:
    """As Envoy, which puts caller and agent beside each other."""
    called = sent.get(headers.FOR, "")
    beside = {headers.PAIR: f"{sent.get(headers.KEY, '')}@{called}", headers.OWN: f"agent:{called}"}
    return walked(tree, {**sent, **beside})


def told(principal: str, **more: str) -> dict[str, str]:
    """The headers in which Envoy says who calls."""
    found = {headers.PRINCIPAL: principal, **more}
    if made := KEYS.get(principal.removeprefix("key:")):
        found[headers.KEY] = made.key_id
    return found


CALLERS: dict[str, dict[str, str]] = {
    **{name: told("local" if name == "local" else f"key:{name}") for name in KEYS},
    "socket": {headers.PRINCIPAL: "local"},
    "anonymous": told("anonymous"),
    "agent": told("agent:caller"),
    "free agent": told("agent:free"),
    "certificate": told("cert:spiffe://agentruntime/client/ci"),
    "certificate over tls": told("cert:x", **{headers.SECURE: "TLSv1.3"}),
    **{f"certificate {uri.removeprefix(CLIENT)}": told(f"cert:{uri}") for uri in CERTIFIED},
    # Of two names: neither's grant is its own.
    "certificate of two": told(f"cert:{CLIENT}operates-all,{CLIENT}limited"),
    "pool": told("cert:spiffe://agentruntime/pool"),
    "agent without permission": told("agent:other"),
    "agent that demands a key": told("agent:by-key"),
    "certificate that looks like an agent's": told("cert:agent:tls-key"),
    "revoked": {headers.PRINCIPAL: "key:gone", headers.KEY: "gone"},
    "nobody": {},
}


@pytest.mark.parametrize(
    ("caller", "agent", "allowed"),
    [
        ("one", "open", True),
        ("one", "unknown", False),
        ("one", "by-id", False),  # The agent takes the key, but the key is not for the agent.
        ("two", "by-key", True),
        ("all", "by-key", False),
        ("all", "any-key", True),
        ("all", "client", False),
        ("chosen", "by-key", True),
        ("chosen", "tls-key", False),
        ("operator", "open", True),
        ("operator", "tls", False),
        ("local", "tls-key", True),
        ("socket", "client", True),
        ("certificate", "open", True),
        ("certificate", "any-key", False),
        ("certificate", "tls", False),
        ("certificate over tls", "tls", True),
        ("certificate limited", "open", True),
        ("certificate limited", "unknown", False),
        ("certificate limited", "tls", False),
        ("certificate limited", "any-key", False),
        ("certificate operator", "unknown", True),
        ("certificate operator", "open", False),
        ("certificate locked-out", "open", False),
        ("pool", "open", False),
        ("anonymous", "open", True),
        ("anonymous", "unknown", True),
        ("anonymous", "any-key", False),
        ("anonymous", "tls", False),
        ("agent", "open", True),
        ("agent", "by-key", False),
        ("agent", "unknown", False),
        ("free agent", "unknown", True),
        ("agent without permission", "open", False),
        # Each may use itself; not who only looks like it.
        ("agent without permission", "other", True),
        ("agent", "caller", True),
        ("free agent", "free", True),
        ("agent", "other", False),
        ("agent that demands a key", "by-key", False),
        ("certificate that looks like an agent's", "tls-key", False),
        ("revoked", "open", False),
    ],
)
def test_who_may_call_what(caller: str, agent: str, allowed: bool) -> None:
    found = caller_of(CALLERS[caller].items(), policy())
    assert may_call(found, agent, DEMANDS.get(agent)) is allowed


def test_what_a_certificate_may_do() -> None:
    def may(caller: str, role: int, agent: str, others: Certified | None = None) -> bool:
        return caller_of(CALLERS[caller].items(), policy(others=others)).may(role, agent)

    assert may("certificate operator", proto.ROLE_OPERATE, "unknown")
    assert not may("certificate operator", proto.ROLE_OPERATE, "open")
    assert may("certificate operates-all", proto.ROLE_OPERATE, "*")
    assert may("certificate", proto.ROLE_CALL, "*")
    assert not may("certificate", proto.ROLE_OPERATE, "open")
    assert not may("certificate", proto.ROLE_CALL, "open", OTHERS[1])
    assert [may("certificate", proto.ROLE_CALL, agent, OTHERS[2]) for agent in ("unknown", "open")] == [True, False]
    assert not may("pool", proto.ROLE_CALL, "open", OTHERS[3])


@pytest.mark.parametrize("anonymous", [True, False])
@pytest.mark.parametrize("secure", [True, False])
@pytest.mark.parametrize("others", OTHERS)
def test_envoy_decides_the_same(anonymous: bool, secure: bool, others: Certified | None) -> None:
    wanted = policy(anonymous=anonymous, others=others)
    tree = rules(wanted).matcher
    for (name, said), agent in itertools.product(CALLERS.items(), AGENTS):
        if name == "nobody":
            continue
        sent = {**said, headers.FOR: agent, ":path": "/x.Y/Z", **({headers.SECURE: "TLSv1.3"} if secure else {})}
        expected = may_call(caller_of(sent.items(), wanted), agent, DEMANDS.get(agent))
        assert walk(tree, sent) is expected, (name, agent, secure)


def test_calls_of_the_platform_itself_pass_but_for_those_of_nobody() -> None:
    for anonymous in (True, False):
        tree = rules(policy(anonymous=anonymous)).matcher
        path = {":path": "/uapi.v1.AgentRegistry/ListAgents"}
        for name, said in CALLERS.items():
            if name not in ("nobody", "revoked", "anonymous", "pool") and not name.startswith("agent "):
                assert walk(tree, {**said, **path}), name
        assert walk(tree, {**CALLERS["anonymous"], **path}) is anonymous
        assert walk(tree, {**CALLERS["anonymous"], ":path": "/grpc.health.v1.Health/Check"})
        assert not walk(tree, {**CALLERS["revoked"], **path})
        assert not walk(tree, path)


def test_whoever_is_known_may_ask_as_whom() -> None:
    path = {":path": "/uapi.v1.AccessService/GetCaller"}
    for anonymous in (True, False):
        tree = rules(policy(anonymous=anonymous)).matcher
        # "-" is whose token is good, and for somebody else.
        for name, said in {**CALLERS, "token": told("-")}.items():
            expected = {"nobody": False, "anonymous": anonymous}.get(name, True)
            assert walk(tree, {**said, **path}) is expected, name
            # Whatever stands in the path, it is no way to an agent.
            if name in ("agent without permission", "token", "pool"):
                assert not walk(tree, {**said, **path, headers.FOR: "open"})


def test_a_key_that_is_not_written_as_it_must_be_goes_nowhere() -> None:
    tree = rules(policy()).matcher
    for written in ("uapi_eyJx", "Token uapi_eyJx", "Bearer  uapi_eyJx"):
        assert not walk(tree, {**told("local"), headers.FOR: "open", "authorization": written})
    assert walk(tree, {**told("local"), headers.FOR: "open", "authorization": "Bearer own"})


@pytest.mark.parametrize("others", OTHERS)
def test_pages_are_for_those_who_operate_all_agents(others: Certified | None) -> None:
    operating = {"local", "socket", "certificate operates-all"}
    if others is OTHERS[-1]:
        operating |= {"certificate", "certificate over tls", "certificate of two"}
        operating.add("certificate that looks like an agent's")
    for anonymous in (True, False):
        tree = http_rules(policy(anonymous=anonymous, others=others)).matcher
        for name, said in CALLERS.items():
            for path in ("/health", "/docs", "/openapi.json"):
                assert walk(tree, {**said, ":path": path}), name
            metrics = walk(tree, {**said, ":path": "/metrics"})
            assert metrics is (name in operating or (name == "anonymous" and anonymous)), name


@pytest.mark.parametrize("path", ["/agents", "/agents/x/run", "/v1/models?limit=1", "/docs/x"])
@pytest.mark.parametrize("anonymous", [True, False])
def test_apis_are_for_all_who_are_known(path: str, anonymous: bool) -> None:
    tree = http_rules(policy(anonymous=anonymous)).matcher
    for name, said in CALLERS.items():
        # Envoy takes no revoked key for one, and the gateway knows it no more.
        expected = {"anonymous": anonymous, "pool": False, "nobody": False}.get(name, True)
        assert walk(tree, {**said, ":path": path}) is expected, name


@pytest.mark.parametrize("path", ["/agentsx", "/v1x", "/metrics", "/docs.html", "/", "/x/agents"])
def test_what_looks_like_an_api_is_none(path: str) -> None:
    assert not walk(http_rules(policy()).matcher, {**CALLERS["one"], ":path": path})


@pytest.mark.parametrize(
    ("demands", "says"),
    [
        (Demands(), []),
        (Demands(tls=True), []),
        (Demands(keys=("chosen", "two")), []),
        (Demands(keys=(KEYS["two"].key_id,)), []),
        (Demands(keys=("*",)), []),
        (Demands(keys=("chosen", "typo")), ["'typo'"]),
        # A key for another agent, and the user's own, which is no key of callers.
        (Demands(keys=("one",)), ["'one'", "only the platform's own user"]),
        (Demands(keys=("local",)), ["'local'", "only the platform's own user"]),
        (Demands(oauth2_client_id="chat"), ["no identity provider", "'chat'", "only the platform's own user"]),
        (Demands(keys=("chosen",), oauth2_client_id="chat"), ["no identity provider"]),
    ],
)
def test_an_operator_is_told_of_demands_that_nobody_meets(demands: Demands, says: list[str]) -> None:
    said = unmet(demands, "by-key", policy())
    assert [each for each in says if each not in said] == []
    assert bool(said) == bool(says)
    assert ("only the platform" in said) == ("only the platform's own user" in says)


def test_any_key_is_none_without_keys() -> None:
    assert "no API key is for it" in unmet(Demands(keys=("*",)), "a", Policy())
