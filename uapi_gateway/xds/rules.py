"""Who may call what, as the tree of look-ups that Envoy's role-based access control walks.

All is found by look-up, so that a thousand agents or ten thousand keys cost a call no more than one:

    a key that is not written as it must be     refused, for an agent would get it
    x-uapi-principal: local                     allowed
                      anonymous                 what demands nothing, or nothing at all
    x-uapi-caller-pair                          a key, and one of its agents
    x-uapi-caller-key                           a key for all agents
    x-uapi-principal: agent:<agent>             the agents that it may call, and itself
                      cert:<URI>                what is said of it, else of all; nothing, if it is the pool's
                      oidc:…                    as the token's scopes say (tokens.py)

A call without x-uapi-for is for the platform itself, which looks by itself.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from agentruntime._proto.uapi.v1 import access_pb2
from envoy.config.rbac.v3 import rbac_pb2 as action_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2
from envoy.type.matcher.v3 import http_inputs_pb2
from google.protobuf import any_pb2
from xds.core.v3 import extension_pb2
from xds.type.matcher.v3 import matcher_pb2

from uapi_gateway.access import headers, policy
from uapi_gateway.access.certified import Certified
from uapi_gateway.access.keys import ALL, KEY_MARK, LOCAL, Key
from uapi_gateway.access.policy import Policy
from uapi_gateway.registry import Demands
from uapi_gateway.xds import cel

# Whom nobody knows may ask whether the platform runs, as orchestrators do, and where to log in.
_WHO_AM_I = "/uapi.v1.AccessService/GetCaller"
OPEN_TO_NOBODY = ("/grpc.health.v1.Health/Check", "/uapi.v1.AccessService/ListIdentityProviders")
# Of the APIs over HTTP, and of the page that describes them (RE2).
API_PATHS = r"/(agents|v1|\.well-known/agent-card\.json|docs|openapi\.json)(/.*)?"
# What anybody may read over HTTP: whether the platform runs, and the description of the API. That names no agent, and
# the browsers that it is for send no credential.
_OPEN_PAGES = ("/health", "/docs", "/openapi.json")
_QUERY = r"(\?.*)?"
_ANY_AGENT = policy.AGENT_PREFIX + ".+"
_OnMatch = matcher_pb2.Matcher.OnMatch


def rules(wanted: Policy, by_token: Any = None) -> Any:
    """The filter's configuration (envoy.extensions.filters.http.rbac.v3.RBAC).

    Args:
        wanted: who may call what.
        by_token: the rule for those who are known by a token of an identity provider; None refuses.
    """
    others = [key for key in wanted.keys.values() if key.name != LOCAL]
    by_key = {key.key_id: _rule(key.agents, wanted.demands, key) for key in others if key.agents == (ALL,)}
    by_pair = {pair: leaf for key in others if key.agents != (ALL,) for pair, leaf in _pairs(key, wanted.demands)}
    by_agent = {
        policy.AGENT_PREFIX + agent: _rule(policy.with_itself(agent, agents), wanted.demands, None)
        for agent, agents in wanted.permitted.items()
    }
    by_uri = {
        policy.CERTIFICATE_PREFIX + uri: _rule(said.agents, wanted.demands, None)
        for uri, said in wanted.certified.items()
    }
    known = {LOCAL: ALLOW, policy.ANONYMOUS: _anonymous(wanted), **by_uri, policy.POOL: DENY, **by_agent}
    certified = _rule(wanted.by_certificate(ALL).agents, wanted.demands, None)
    # Of agents without permissions, too, which need no rule of their own for it.
    itself = cel.predicate(cel.equal(cel.header(headers.PRINCIPAL), cel.header(headers.OWN)))
    own = _rule((ALL,), wanted.demands, None)
    # Looked at of agents only: an expression costs more than all the rest.
    an_agent = matches(headers.PRINCIPAL, _ANY_AGENT)
    by_name = first([(_certified(), certified), (an_agent, first([(itself, own)], DENY))], by_token or DENY)
    by_principal = look_up(headers.PRINCIPAL, known, by_name)
    tree = look_up(headers.PAIR, by_pair, look_up(headers.KEY, by_key, by_principal))
    miswritten = _predicate("authorization")
    miswritten.single_predicate.value_match.contains = KEY_MARK
    message = rbac_pb2.RBAC()
    # Whoever is known may ask as whom; above all those who may do nothing else.
    asking = look_up(
        headers.PRINCIPAL, {policy.ANONYMOUS: tree}, first([(given(headers.PRINCIPAL), PLATFORM_ONLY)], DENY)
    )
    cases = [(miswritten, DENY), (given(headers.GRANTED), ALLOW)]
    message.matcher.CopyFrom(first(cases, look_up(":path", {_WHO_AM_I: asking}, tree)).matcher)
    return message


def http_rules(wanted: Policy, by_token: Any = None, bearers: Any = None) -> Any:
    """The same for HTTP: health and the API's description are open, the APIs look by themselves who may call which
    agent, and the pages are for those who operate all agents.

    Args:
        wanted: who may call what.
        by_token: the rule of the pages for those who are known by a token of an identity provider; None refuses.
        bearers: the same of the APIs.
    """
    operating = {
        key.key_id: ALLOW
        for key in wanted.keys.values()
        if policy.Grant(key.role, key.agents).covers(access_pb2.ROLE_OPERATE, ALL)
    }
    nobody = {policy.ANONYMOUS: ALLOW} if wanted.anonymous else {}
    by_uri = {policy.CERTIFICATE_PREFIX + uri: _operating(said) for uri, said in wanted.certified.items()}
    others = first([(_certified(), _operating(wanted.by_certificate(ALL)))], by_token or DENY)
    known_by_name = {LOCAL: ALLOW, **nobody, **by_uri, policy.POOL: DENY}
    pages = look_up(headers.KEY, operating, look_up(headers.PRINCIPAL, known_by_name, others))
    # Whose key is good has got this header.
    known = [(given(headers.KEY), ALLOW), (_certified(), ALLOW), (matches(headers.PRINCIPAL, _ANY_AGENT), ALLOW)]
    special = {LOCAL: ALLOW, policy.POOL: DENY, **nobody}
    apis = look_up(headers.PRINCIPAL, special, first(known, bearers or DENY))
    message = rbac_pb2.RBAC()
    message.matcher.CopyFrom(
        look_up(
            ":path", dict.fromkeys(_OPEN_PAGES, ALLOW), first([(matches(":path", API_PATHS + _QUERY), apis)], pages)
        ).matcher
    )
    return message


def _operating(said: Certified) -> Any:
    covers = policy.Grant(said.role, said.agents).covers(access_pb2.ROLE_OPERATE, ALL)
    return ALLOW if covers else DENY


def _anonymous(wanted: Policy) -> Any:
    if not wanted.anonymous:
        return look_up(":path", dict.fromkeys(OPEN_TO_NOBODY, PLATFORM_ONLY), DENY)
    return _rule((ALL,), wanted.demands, None)


def _pairs(key: Key, demands: Mapping[str, Demands]) -> Iterator[tuple[str, Any]]:
    """All that a key for some agents may: the platform itself, and each of them.

    One flat map for all keys: Envoy takes half a millisecond to make a matcher of its own for each, and a fiftieth of
    that for an entry.
    """
    yield f"{key.key_id}@", ALLOW
    for agent in key.agents:
        said = demands.get(agent)
        if said is None or policy.accepts(said, key):
            yield f"{key.key_id}@{agent}", IF_SECURE if said is not None and said.tls else ALLOW


def _rule(agents: tuple[str, ...], demands: Mapping[str, Demands], key: Key | None) -> Any:
    """What a caller may that may call those agents; `key` if it has one."""
    relevant = demands if agents == (ALL,) else {name: demands[name] for name in agents if name in demands}
    special = tuple(
        (name, _SECURE if policy.accepts(said, key) else _DENIED)
        for name, said in sorted(relevant.items())
        if said.tls or not policy.accepts(said, key)
    )
    return _compiled(agents, special)


# What a caller may do of an agent that demands something.
_DENIED, _SECURE = "denied", "secure"


@lru_cache(maxsize=16_384)
def _compiled(agents: tuple[str, ...], special: tuple[tuple[str, str], ...]) -> Any:
    """The rule of all keys that may do the same."""
    leaves = {name: DENY if kind == _DENIED else IF_SECURE for name, kind in special}
    if agents == (ALL,):
        return look_up(headers.FOR, leaves, ALLOW)
    return _named({**dict.fromkeys(agents, ALLOW), **leaves})


def _named(agents: Mapping[str, Any]) -> Any:
    """Those agents, and the platform itself; no other agent."""
    return look_up(headers.FOR, agents, PLATFORM_ONLY)


def look_up(header: str, values: Mapping[str, Any], otherwise: Any) -> Any:
    """What a header's value leads to."""
    if not values:
        return otherwise
    found = _OnMatch()
    tree = found.matcher.matcher_tree
    tree.input.CopyFrom(_input(header))
    for value, leaf in values.items():
        tree.exact_match_map.map[value].CopyFrom(leaf)
    found.matcher.on_no_match.CopyFrom(otherwise)
    return found


def first(cases: Iterable[tuple[Any, Any]], otherwise: Any) -> Any:
    """What the first case leads to whose predicate is true."""
    found = _OnMatch()
    cases = list(cases)
    if not cases:
        return otherwise
    for predicate, leaf in cases:
        case = found.matcher.matcher_list.matchers.add()
        case.predicate.CopyFrom(predicate)
        case.on_match.CopyFrom(leaf)
    found.matcher.on_no_match.CopyFrom(otherwise)
    return found


def given(header: str) -> Any:
    """The header is there, and not empty."""
    return matches(header, ".+")


def matches(header: str, regex: str) -> Any:
    """All of a header's value is as an expression says (RE2)."""
    predicate = _predicate(header)
    predicate.single_predicate.value_match.safe_regex.google_re2.SetInParent()
    predicate.single_predicate.value_match.safe_regex.regex = regex
    return predicate


def _certified() -> Any:
    predicate = _predicate(headers.PRINCIPAL)
    predicate.single_predicate.value_match.safe_regex.google_re2.SetInParent()
    predicate.single_predicate.value_match.safe_regex.regex = f"{policy.CERTIFICATE_PREFIX}.+"
    return predicate


def _predicate(header: str) -> Any:
    predicate = matcher_pb2.Matcher.MatcherList.Predicate()
    predicate.single_predicate.input.CopyFrom(_input(header))
    return predicate


@lru_cache(maxsize=32)
def _input(header: str) -> Any:
    config = any_pb2.Any()
    config.Pack(http_inputs_pb2.HttpRequestHeaderMatchInput(header_name=header))
    return extension_pb2.TypedExtensionConfig(name=header, typed_config=config)


def _leaf(name: str, *, allow: bool) -> Any:
    kind = action_pb2.RBAC.ALLOW if allow else action_pb2.RBAC.DENY
    config = any_pb2.Any()
    config.Pack(action_pb2.Action(name=name, action=kind))
    return _OnMatch(action=extension_pb2.TypedExtensionConfig(name=name, typed_config=config))


ALLOW, DENY = _leaf("allowed", allow=True), _leaf("denied", allow=False)
IF_SECURE = first([(given(headers.SECURE), ALLOW)], DENY)
PLATFORM_ONLY = first([(given(headers.FOR), DENY)], ALLOW)
