"""The routes: which cluster a call goes to, who may make it, and when it may be repeated.

All is found by look-up, in a tree of matchers, so that a thousand services cost a call no more than one:

    a header that gRPC cannot read      refused
    authorization is the operator's     the header is removed and the rest of the tree is open
    it only holds the operator's token  refused, for an agent would get it
    x-uapi-agent is given               the cluster that Envoy made of it (never a name that the caller chose)
    else, by service                    the pool's; one of exactly one agent; the gateway's own and all others

A call that an agent's cache may answer goes to the relay instead, unless it belongs to a conversation or says that
the cache is to be passed by.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agentruntime import status

from uapi_gateway import descriptors
from uapi_gateway.xds import clusters, limits, resources
from uapi_gateway.xds.resources import Resource, typed

AGENT_HEADER = "x-uapi-agent"
# Set by Envoy from x-uapi-agent; a caller's own is removed first.
CLUSTER_HEADER = "x-uapi-cluster"
# Calls of one conversation stay together, where the agent's calls are spread so, and are never answered by a cache.
CONVERSATION_HEADER = "x-uapi-conversation"
# In a response: whether it came from the cache. In a request, whatever it says: the cache is passed by.
CACHE_HEADER = "x-uapi-cache"
LONGEST_DEADLINE_S = 24 * 3600
LONGEST_MESSAGE_BYTES = 4 * 2**20
UNAUTHENTICATED = (
    "this needs the operator's credential: send 'authorization: Bearer <token>' with the token from the "
    "runtime directory, or use its gateway socket"
)
MISWRITTEN = (
    "the operator's credential is not written as the gateway reads it, and is not passed on to agents: send "
    "'authorization: Bearer <token>' once"
)
# Goes to the pool by way of the gateway.
RUN_AGENT = f"/{descriptors.POOL}/RunAgent"
# Of the pool's services.
POOLS_PREFIXES = (f"/{descriptors.POOL}/", f"/{descriptors.IMAGES}/", f"/{descriptors.SECRETS}/")
# Services that need the operator's credential over TCP, as a whole or by method.
OPERATOR_PREFIXES = (
    f"/{descriptors.POOL}/",
    RUN_AGENT,
    f"/{descriptors.IMAGES}/",
    f"/{descriptors.SECRETS}/",
    f"/{descriptors.AUDIT}/",
    f"/{descriptors.REGISTRY}/RegisterAgent",
    f"/{descriptors.REGISTRY}/KeepAlive",
    f"/{descriptors.REGISTRY}/DeregisterAgent",
)
# What gRPC's own headers look like (gRPC over HTTP/2, "Requests"). A worker's gRPC keeps one that it cannot read in
# the state of the connection, which all callers share, and then fails their calls too: none must reach it.
WELL_FORMED = {"grpc-timeout": "[0-9]{1,8}[HMSmun]", "grpc-encoding": "identity|gzip|deflate"}
# Of the same kind, but nothing that a caller needs to say to a worker.
UNREADABLE = ("grpc-previous-rpc-attempts", "grpc-retry-pushback-ms", "grpc-status", "lb-cost-bin")
# Of a method whose answer is only true when it is given.
_HEALTH = "/GetHealth"
# Never reached a worker.
_SAFE = "connect-failure,refused-stream,reset-before-request"
# One that drains says that it has not begun it. The relay, where patient routes lead, has tried others already.
_REFUSED = "retriable-headers"

# The gateway is back within a second; these are some four, for a delay is anything up to the interval.
_PATIENT_RETRIES = 40
_PATIENT_BACK_OFF = {"base_interval": "0.025s", "max_interval": "0.25s"}


@dataclass(frozen=True)
class RoutePlan:
    """What the routes depend on. Pure data: equal plans give equal routes."""

    # Full service name -> the one agent that serves it.
    services: Mapping[str, str] = field(default_factory=dict)
    # "/service/Method" of methods that may be repeated though a worker may have seen the call.
    idempotent: frozenset[str] = frozenset()
    # Agents and workers of which no call may be repeated so.
    opted_out: frozenset[str] = frozenset()
    # Agents whose answers are kept.
    cached: frozenset[str] = frozenset()
    # "/service/Method" of methods whose answers may be kept.
    cacheable: frozenset[str] = frozenset()
    # "/service/Method" of methods whose requests are one message.
    whole: frozenset[str] = frozenset()


def plan(agents: Iterable[Any], workers: Mapping[str, str]) -> RoutePlan:
    """Decides the routes for the agents there are.

    Args:
        agents: `registry.Agent`s.
        workers: the agent of each worker.
    """
    agents = list(agents)
    serving: dict[str, list[Any]] = {}
    repeatable: dict[str, bool] = {}
    streaming = set()
    whole: dict[str, bool] = {}
    for agent in agents:
        for service in agent.services:
            if service not in descriptors.PLATFORM:
                serving.setdefault(service, []).append(agent)
        # Where two agents differ about a method, it is not idempotent.
        for method in descriptors.methods_of(agent.descriptors):
            if method.service not in descriptors.PLATFORM:
                repeatable[method.path] = repeatable.get(method.path, True) and method.idempotent
                streaming |= {method.path} if method.streams else set()
                whole[method.path] = whole.get(method.path, True) and method.whole
    for method in descriptors.methods_of(descriptors.platform_set()):
        whole[method.path] = method.whole
        if method.service == descriptors.TEXT_GENERATION:
            repeatable.setdefault(method.path, method.idempotent)
            streaming |= {method.path} if method.streams else set()
    single = {}
    for service, every in serving.items():
        running = [agent for agent in every if not agent.stopped] or every
        if len(running) == 1:
            single[service] = running[0].agent_id
    out = {agent.agent_id for agent in agents if not agent.idempotent}
    idempotent = frozenset(path for path, yes in repeatable.items() if yes)
    with_cache = cached(agents)
    return RoutePlan(
        services=single,
        idempotent=idempotent,
        opted_out=frozenset(out | {worker for worker, agent in workers.items() if agent in out}),
        cached=with_cache,
        cacheable=frozenset(path for path in idempotent - streaming if with_cache and not path.endswith(_HEALTH)),
        whole=frozenset(path for path, yes in whole.items() if yes),
    )


def cached(agents: Iterable[Any]) -> frozenset[str]:
    """The ids of those agents whose answers are kept."""
    return frozenset(agent.agent_id for agent in agents if agent.cache is not None and agent.idempotent)


def route_configuration(name: str, wanted: RoutePlan, token: str, *, open_to_all: bool) -> Resource:
    """The routes of one listener.

    Args:
        name: of the route configuration.
        wanted: what there is to route.
        token: the operator's credential.
        open_to_all: whoever can reach the listener may do everything.
    """
    malformed = [
        {"predicate": _malformed(header, form), "on_match": _refusal(400, f"{header} is malformed")}
        for header, form in WELL_FORMED.items()
    ]
    # The scheme's case is free, RFC 9110 section 11.1.
    bearer = _matches("authorization", f"(?i:bearer) +{re.escape(token)}")
    matcher = {
        "matcher_list": {
            "matchers": [
                *malformed,
                {"predicate": bearer, "on_match": _tree(wanted, operator=True, credential=True)},
                {"predicate": _holds("authorization", token), "on_match": _refusal(401, MISWRITTEN)},
            ]
        },
        "on_no_match": _tree(wanted, operator=open_to_all, credential=False),
    }
    host = {
        "name": name,
        "domains": ["*"],
        "matcher": matcher,
        "typed_per_filter_config": limits.whole_requests(wanted.whole, LONGEST_MESSAGE_BYTES),
    }
    return resources.make(resources.ROUTE, name, {"name": name, "virtual_hosts": [host]})


def hold_configuration(name: str, wanted: RoutePlan) -> Resource:
    """The routes of the calls that are held for the relay: all lead there, as soon as it is there.

    A call that it has seen is repeated like any other: held for a worker or not, it may have been passed on.
    """
    target = {"cluster": clusters.RELAY}
    once = _route(target, credential=False, patient=True)
    tree = _by_path(wanted.idempotent, _route(target, credential=False, repeat=True, patient=True), once)
    if wanted.opted_out:
        tree = _look_up(AGENT_HEADER, dict.fromkeys(sorted(wanted.opted_out), once), otherwise=tree)
    # A matcher must be one, even if there is nothing to look up.
    everything = {"predicate": _matches(":path", ".*"), "on_match": tree}
    host = {"name": name, "domains": ["*"], "matcher": {"matcher_list": {"matchers": [everything]}}}
    return resources.make(resources.ROUTE, name, {"name": name, "virtual_hosts": [host]})


def http_configuration(name: str) -> Resource:
    """The routes of the HTTP pages: all lead to the gateway, as soon as it is there."""
    route = _route({"cluster": clusters.HTTP}, credential=False, patient=True)["action"]["typed_config"]
    fields = {key: value for key, value in route.items() if key != "@type"}
    host = {"name": name, "domains": ["*"], "routes": [fields]}
    return resources.make(resources.ROUTE, name, {"name": name, "virtual_hosts": [host]})


def _tree(wanted: RoutePlan, *, operator: bool, credential: bool) -> dict[str, Any]:
    by_header: dict[str, Any] = {"cluster_header": CLUSTER_HEADER, "cluster_not_found_response_code": "NOT_FOUND"}
    plain = _route(by_header, credential=credential)
    again = _route(by_header, repeat=True, credential=credential)
    opted_out = {
        name: _route({"cluster": clusters.cluster_name(name, idempotent=False)}, credential=credential)
        for name in sorted(wanted.opted_out)
    }
    named = _look_up(AGENT_HEADER, opted_out, otherwise=_by_path(wanted.idempotent, again, plain))
    if wanted.cached:
        by_relay = {
            agent: _route({"cluster": clusters.CACHED_PREFIX + agent}, repeat=True, credential=credential)
            for agent in sorted(wanted.cached)
        }
        # What may be kept may be repeated, so below each such path only the agents differ: the tree stays small.
        kept = _look_up(AGENT_HEADER, by_relay, otherwise=_look_up(AGENT_HEADER, opted_out, otherwise=again))
        named = _unless_passed_by(_by_path(wanted.cacheable, kept, named), named)
    given = _matches(AGENT_HEADER, ".+")
    return {
        "matcher": {
            "matcher_list": {"matchers": [{"predicate": given, "on_match": named}]},
            "on_no_match": _by_service(wanted, operator=operator, credential=credential),
        }
    }


def _by_service(wanted: RoutePlan, *, operator: bool, credential: bool) -> dict[str, Any]:
    control = _route({"cluster": clusters.CONTROL}, credential=credential, patient=True)
    pool = _route({"cluster": clusters.POOL}, credential=credential)
    prefixes: dict[str, Any] = {}
    for service, agent in sorted(wanted.services.items()):
        prefix = f"/{service}/"
        target = {"cluster": clusters.cluster_name(agent, idempotent=agent not in wanted.opted_out)}
        once = _route(target, agent=agent, credential=credential)
        repeatable = {path for path in wanted.idempotent if path.startswith(prefix)}
        if agent in wanted.opted_out:
            repeatable = set()
        again = _route(target, agent=agent, repeat=True, credential=credential)
        prefixes[prefix] = _by_path(repeatable, again, once)
        if agent in wanted.cached:
            by_relay = {"cluster": clusters.CACHED_PREFIX + agent}
            relay = _route(by_relay, agent=agent, repeat=True, credential=credential)
            cacheable = {path for path in wanted.cacheable if path.startswith(prefix)}
            prefixes[prefix] = _by_path(cacheable, _unless_passed_by(relay, again), prefixes[prefix])
    for prefix in OPERATOR_PREFIXES:
        pools_own = prefix.startswith(POOLS_PREFIXES) and prefix != RUN_AGENT
        allowed = pool if pools_own else control
        prefixes[prefix] = allowed if operator else _refusal(401, UNAUTHENTICATED)
    tree = {"input": _header(":path"), "prefix_match_map": {"map": prefixes}}
    return {"matcher": {"matcher_tree": tree, "on_no_match": control}}


def _unless_passed_by(kept: dict[str, Any], otherwise: dict[str, Any]) -> dict[str, Any]:
    """What the cache may answer, but not of a conversation, nor where the caller says so."""
    given = [{"predicate": _given(name), "on_match": otherwise} for name in (CONVERSATION_HEADER, CACHE_HEADER)]
    return {"matcher": {"matcher_list": {"matchers": given}, "on_no_match": kept}}


def _by_path(paths: Iterable[str], listed: dict[str, Any], otherwise: dict[str, Any]) -> dict[str, Any]:
    return _look_up(":path", dict.fromkeys(sorted(paths), listed), otherwise)


def _look_up(header: str, values: dict[str, Any], otherwise: dict[str, Any]) -> dict[str, Any]:
    if not values:
        return otherwise
    tree = {"input": _header(header), "exact_match_map": {"map": values}}
    return {"matcher": {"matcher_tree": tree, "on_no_match": otherwise}}


def _header(name: str) -> dict[str, Any]:
    config = typed("envoy.type.matcher.v3.HttpRequestHeaderMatchInput", header_name=name)
    return {"name": "header", "typed_config": config}


def _matches(header: str, regex: str) -> dict[str, Any]:
    """Whether a header is there and is, as a whole, of a form (RE2)."""
    whole = {"safe_regex": {"google_re2": {}, "regex": regex}}
    return {"single_predicate": {"input": _header(header), "value_match": whole}}


def _given(header: str) -> dict[str, Any]:
    return _matches(header, ".*")


def _holds(header: str, value: str) -> dict[str, Any]:
    return {"single_predicate": {"input": _header(header), "value_match": {"contains": value}}}


def _malformed(header: str, form: str) -> dict[str, Any]:
    """Whether a header is there and is not of the form; one sent twice arrives joined by a comma, and is not."""
    return {"and_matcher": {"predicate": [_given(header), {"not_matcher": _matches(header, form)}]}}


def _route(
    target: dict[str, Any], *, credential: bool, agent: str = "", repeat: bool = False, patient: bool = False
) -> dict[str, Any]:
    retry_on = (_SAFE, *(() if patient else (_REFUSED,)), *(("reset",) if repeat else ()))
    route: dict[str, Any] = {
        "match": {"prefix": "/"},
        "route": {
            **target,
            "timeout": "0s",
            # Only clusters of sticky agents ask for it.
            "hash_policy": [{"header": {"header_name": CONVERSATION_HEADER}}],
            # The caller's own deadline, even if the worker ignores it; none means none, for streams may last.
            "max_stream_duration": {"grpc_timeout_header_max": f"{LONGEST_DEADLINE_S}s"},
            "retry_policy": {
                "retry_on": ",".join(retry_on),
                "retriable_headers": [{"name": status.NOT_BEGUN_KEY, "present_match": True}],
                "num_retries": _PATIENT_RETRIES if patient else 3,
                "retry_back_off": _PATIENT_BACK_OFF
                if patient
                else {"base_interval": "0.005s", "max_interval": "0.05s"},
                "retry_host_predicate": [
                    {
                        "name": "envoy.retry_host_predicates.previous_hosts",
                        "typed_config": typed("envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"),
                    }
                ],
                # The third attempt leaves the workers alone: when several die at once, it goes to the relay, which
                # waits for one that accepts.
                "retry_priority": {
                    "name": "envoy.retry_priorities.previous_priorities",
                    "typed_config": typed(
                        "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
                        update_frequency=2,
                    ),
                },
                # Least-request prefers a dead host, which has no requests: 5 attempts were too few.
                "host_selection_retry_max_attempts": 30,
            },
        },
    }
    route["request_headers_to_remove"] = [CLUSTER_HEADER, *(["authorization"] if credential else [])]
    if agent:
        # So that the relay knows whom the call is for.
        header = {"header": {"key": AGENT_HEADER, "value": agent}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        route["request_headers_to_add"] = [header]
    return {"action": {"name": "route", "typed_config": typed("envoy.config.route.v3.Route", **route)}}


def _refusal(status: int, reason: str) -> dict[str, Any]:
    route = typed(
        "envoy.config.route.v3.Route",
        match={"prefix": "/"},
        direct_response={"status": status, "body": {"inline_string": reason}},
    )
    return {"action": {"name": "route", "typed_config": route}}
