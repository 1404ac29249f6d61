"""The routes: which cluster a call goes to, and when it may be repeated.

All is found by look-up, in a tree of matchers, so that a thousand services cost a call no more than one:

    a header that gRPC cannot read      refused
    x-uapi-agent is given twice         refused
    x-uapi-agent is given               the cluster that Envoy made of it (never a name that the caller chose);
                                        for A2A the gateway, which speaks it for all agents
    else, by service                    the pool's; one of exactly one agent; the gateway's own and all others

Who may make a call is decided behind it, by the filters, which a route tells the agent that it leads to. Calls to the
pool go there by way of the gateway, which looks who makes them; those of this user that only look go there straight.

A call that an agent's cache may answer goes to the relay instead, unless it belongs to a conversation or says that
the cache is to be passed by.
"""

import re
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from agentruntime import calls, status
from google.protobuf.descriptor_pb2 import MethodOptions

from uapi_gateway import descriptors
from uapi_gateway.access import headers
from uapi_gateway.access.demand import POOL_NEEDS
from uapi_gateway.access.keys import KEY_MARK
from uapi_gateway.kernel import caller
from uapi_gateway.kernel.caller import MOST_HOPS
from uapi_gateway.xds import clusters, filters, limits, resources, rules
from uapi_gateway.xds.edges import Edges, edges
from uapi_gateway.xds.filters import WORKER_SUFFIX
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
_NONE: frozenset[str] = frozenset()
# Of the platform's services, and of those that no agent serves.
_OWN = tuple(f"/{service}/" for service in sorted(descriptors.PLATFORM))
_OWN_ALONE = tuple(
    f"/{service}/"
    for service in sorted(
        descriptors.PLATFORM - {descriptors.HEALTH, *descriptors.REFLECTION, descriptors.CONVERSATIONS}
    )
)
_A2A = f"/{descriptors.A2A}/"
_NUMBERED = re.compile(f"{WORKER_SUFFIX}$")
# What changes something at the pool goes there by way of the gateway, which writes down who did it.
CHANGING = tuple(
    path
    for path, (method, _) in sorted(POOL_NEEDS.items())
    if method.GetOptions().idempotency_level != MethodOptions.NO_SIDE_EFFECTS
)
# Served by the pool.
POOL_SERVICES = (descriptors.POOL, descriptors.IMAGES, descriptors.SECRETS)
# What gRPC's own headers look like (gRPC over HTTP/2, "Requests"). A worker's gRPC keeps one that it cannot read in
# the state of the connection, which all callers share, and then fails their calls too: none must reach it.
WELL_FORMED = {"grpc-timeout": "[0-9]{1,8}[HMSmun]", "grpc-encoding": "identity|gzip|deflate"}
# Of the same kind, but nothing that a caller needs to say to a worker.
UNREADABLE = ("grpc-previous-rpc-attempts", "grpc-retry-pushback-ms", "grpc-status", "lb-cost-bin")
# Of methods whose answers are only true when they are given.
_CHANGING = (
    "/GetHealth",
    *(
        f"/{descriptors.CONVERSATIONS}/{method}"
        for method in ("GetConversation", "ListConversations", "CancelMessage", "DeleteConversation")
    ),
)
# Never reached a worker.
_SAFE = "connect-failure,refused-stream,reset-before-request"
# One that drains says that it has not begun it. The relay, where patient routes lead, has tried others already.
_REFUSED = "retriable-headers"

# The gateway is back within a second, on a busy machine within some; these are ten, for a delay is anything up to the
# interval.
_PATIENT_RETRIES = 80
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
    # Agents whose ids look like the name of another's worker.
    numbered: frozenset[str] = frozenset()
    # "/service/Method" of methods whose requests are one message.
    whole: frozenset[str] = frozenset()
    # Which agent may call which. Compared by itself: every new agent has an edge, and no other routes depend on it.
    edges: Edges = field(default_factory=Edges, compare=False)


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
    whole |= {_A2A + name: True for name in descriptors.A2A_METHODS}
    for method in descriptors.methods_of(descriptors.platform_set()):
        whole[method.path] = method.whole
        if method.service in (descriptors.TEXT_GENERATION, descriptors.CONVERSATIONS):
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
        cacheable=frozenset(path for path in idempotent - streaming if with_cache and not path.endswith(_CHANGING)),
        numbered=frozenset(agent.agent_id for agent in agents if _NUMBERED.search(agent.agent_id)),
        whole=frozenset(path for path, yes in whole.items() if yes),
        edges=edges(agents),
    )


def cached(agents: Iterable[Any]) -> frozenset[str]:
    """The ids of those agents whose answers are kept."""
    return frozenset(agent.agent_id for agent in agents if agent.cache is not None and agent.idempotent)


def route_configuration(name: str, wanted: RoutePlan, *, own: bool) -> Resource:
    """The routes of one listener.

    Args:
        name: of the route configuration.
        wanted: what there is to route.
        own: a caller that shows no credential is this user, whose looks at the pool go there straight.
    """
    matchers = _refusals()
    if own:
        checked = _tree(wanted, straight=False)
        matchers += [
            {"predicate": _holds(name, KEY_MARK), "on_match": checked} for name in ("authorization", "x-api-key")
        ]
    matcher = {"matcher_list": {"matchers": matchers}, "on_no_match": _tree(wanted, straight=own)}
    host = {"name": name, "domains": ["*"], "matcher": matcher}
    return resources.make(resources.ROUTE, name, {"name": name, "virtual_hosts": [host]})


def system_call_configuration(name: str, wanted: RoutePlan) -> Resource:
    """The routes of what workers call on their socket: to the agents that theirs may call, and to the gateway.

    That refuses whatever leads to no agent, and says what would be needed.
    """
    kernel = _route({"cluster": clusters.KERNEL}, patient=True, platform=True)
    may = wanted.edges
    named = _named(wanted)
    guarded = _look_up(AGENT_HEADER, dict.fromkeys(sorted(may.demanding), kernel), otherwise=named)
    services = {
        prefix: {"matcher": {"matcher_list": {"matchers": [{"predicate": predicate, "on_match": found}]},
                             "on_no_match": kernel}}
        for prefix, (agent, found) in _services(wanted).items()
        for predicate in [_matches(caller.AGENT, may.callers(agent))]
    }  # fmt: skip
    no_agent: dict[str, Any] = kernel
    if services:
        tree = {"input": _header(":path"), "prefix_match_map": {"map": services}}
        no_agent = {"matcher": {"matcher_tree": tree, "on_no_match": kernel}}
    cases = [
        {"predicate": _matches(calls.CHAIN_KEY, f"(?:[^,]*,){{{MOST_HOPS + 1},}}.*"), "on_match": kernel},
        {"predicate": {"not_matcher": _matches(AGENT_HEADER, ".+")}, "on_match": no_agent},
        {"predicate": {"not_matcher": _matches(AGENT_HEADER, "[a-z0-9-]+")}, "on_match": kernel},
        # Agents name agents: what one demands of its callers is looked up by its own name only.
        {"predicate": _names_worker(wanted), "on_match": kernel},
        {"predicate": _matches(caller.EDGE, may.allowed()), "on_match": named},
        {"predicate": _matches(caller.EDGE, may.from_everywhere()), "on_match": guarded},
    ]
    matcher = {"matcher_list": {"matchers": [*_refusals(), *cases]}, "on_no_match": kernel}
    host = {"name": name, "domains": ["*"], "matcher": matcher}
    return resources.make(resources.ROUTE, name, {"name": name, "virtual_hosts": [host]})


def hold_configuration(name: str, wanted: RoutePlan) -> Resource:
    """The routes of the calls that are held for the relay: all lead there, as soon as it is there.

    A call that it has seen is repeated like any other: held for a worker or not, it may have been passed on.
    """
    target = {"cluster": clusters.RELAY}
    once = _route(target, patient=True)
    tree = _by_path(wanted.idempotent, _route(target, repeat=True, patient=True), once)
    if wanted.opted_out:
        tree = _look_up(AGENT_HEADER, dict.fromkeys(sorted(wanted.opted_out), once), otherwise=tree)
    # A matcher must be one, even if there is nothing to look up.
    everything = {"predicate": _matches(":path", ".*"), "on_match": tree}
    host = {"name": name, "domains": ["*"], "matcher": {"matcher_list": {"matchers": [everything]}}}
    return resources.make(resources.ROUTE, name, {"name": name, "virtual_hosts": [host]})


def whole_configuration(name: str, cluster: str) -> Resource:
    """The routes of a listener whose requests all lead to one cluster, as soon as it is there."""
    host = {"name": name, "domains": ["*"], "routes": [_fields({"cluster": cluster}, patient=True)]}
    return resources.make(resources.ROUTE, name, {"name": name, "virtual_hosts": [host]})


def http_configuration(name: str, cluster: str) -> Resource:
    """The routes of the listener for HTTP: the APIs, whose answers last, and the pages."""
    page = _fields({"cluster": cluster}, patient=True, platform=True)
    own = limits.lasting()
    api = {
        **page,
        "match": {"safe_regex": {"regex": rules.API_PATHS}},
        "route": {**page["route"], **own["route"]},
        "typed_per_filter_config": own["typed_per_filter_config"],
    }
    host = {"name": name, "domains": ["*"], "routes": [api, page]}
    return resources.make(resources.ROUTE, name, {"name": name, "virtual_hosts": [host]})


def _refusals() -> list[dict[str, Any]]:
    """Of headers that a worker's gRPC cannot read, and of calls that name more than one agent.

    Of two names, matchers see both, joined by a comma, where the cluster and the rules are those of the first.
    """
    malformed = [
        {"predicate": _malformed(header, form), "on_match": _refusal(400, f"{header} is malformed")}
        for header, form in WELL_FORMED.items()
    ]
    several = _refusal(400, f"{AGENT_HEADER} names more than one agent; send one name")
    return [*malformed, {"predicate": _holds(AGENT_HEADER, ","), "on_match": several}]


def _tree(wanted: RoutePlan, *, straight: bool) -> dict[str, Any]:
    by_worker = _unless_a2a(_named(wanted, worker=True), filters.for_worker())
    cases = [
        {"predicate": _names_worker(wanted), "on_match": by_worker},
        {"predicate": _matches(AGENT_HEADER, ".+"), "on_match": _unless_a2a(_named(wanted))},
    ]
    return {
        "matcher": {
            "matcher_list": {"matchers": cases},
            "on_no_match": _by_service(wanted, straight=straight),
        }
    }


def _unless_a2a(named: dict[str, Any], told: dict[str, Any] | None = None) -> dict[str, Any]:
    """The routes of calls that name an agent; A2A's go to the gateway, whatever the agent serves."""
    to_gateway = _route({"cluster": clusters.CONTROL}, told=told, patient=True, platform=True, whole=True)
    tree = {"input": _header(":path"), "prefix_match_map": {"map": {_A2A: to_gateway}}}
    return {"matcher": {"matcher_tree": tree, "on_no_match": named}}


def _names_worker(wanted: RoutePlan) -> dict[str, Any]:
    """Whether a call names a worker, and not an agent whose id looks like one's."""
    worker = _matches(AGENT_HEADER, f".+{WORKER_SUFFIX}")
    if not wanted.numbered:
        return worker
    # One pattern, not a branch for each: there may be a thousand.
    agent = _matches(AGENT_HEADER, "|".join(map(re.escape, sorted(wanted.numbered))))
    return {"and_matcher": {"predicate": [worker, {"not_matcher": agent}]}}


def _named(wanted: RoutePlan, *, worker: bool = False) -> dict[str, Any]:
    """The routes of calls that name an agent, or a worker of one."""
    told = filters.for_worker() if worker else {}
    by_header: dict[str, Any] = {"cluster_header": CLUSTER_HEADER, "cluster_not_found_response_code": "NOT_FOUND"}
    opted_out = {
        name: _methods(wanted, {"cluster": clusters.cluster_name(name, idempotent=False)}, told, repeatable=_NONE)
        for name in sorted(wanted.opted_out)
    }
    named = _look_up(AGENT_HEADER, opted_out, otherwise=_methods(wanted, by_header, told, wanted.idempotent))
    if wanted.cached and not worker:
        by_relay = {
            agent: _route({"cluster": clusters.CACHED_PREFIX + agent}, repeat=True, whole=True)
            for agent in sorted(wanted.cached)
        }
        again = _route(by_header, repeat=True, whole=True)
        # What may be kept may be repeated, so below each such path only the agents differ: the tree stays small.
        kept = _look_up(AGENT_HEADER, by_relay, otherwise=_look_up(AGENT_HEADER, opted_out, otherwise=again))
        named = _unless_passed_by(_by_path(wanted.cacheable, kept, named), named)
    return named


def _by_service(wanted: RoutePlan, *, straight: bool) -> dict[str, Any]:
    control, whole_control = (
        _route({"cluster": clusters.CONTROL}, patient=True, platform=True, whole=whole) for whole in (False, True)
    )
    own = sorted(path for path in wanted.whole if path.startswith(_OWN))
    otherwise = _by_path(own, whole_control, control)
    prefixes: dict[str, Any] = {prefix: found for prefix, (_, found) in _services(wanted).items()}
    if straight:
        pool, whole_pool = (_route({"cluster": clusters.POOL}, whole=whole) for whole in (False, True))
        for prefix in (f"/{service}/" for service in POOL_SERVICES):
            prefixes[prefix] = _by_path((path for path in own if path.startswith(prefix)), whole_pool, pool)
        prefixes |= {path: whole_control if path in wanted.whole else control for path in CHANGING}
    tree = {"input": _header(":path"), "prefix_match_map": {"map": prefixes}}
    if not prefixes:
        return otherwise
    return {"matcher": {"matcher_tree": tree, "on_no_match": otherwise}}


def _methods(
    wanted: RoutePlan, target: dict[str, Any], told: dict[str, Any], repeatable: AbstractSet[str], service: str = "/"
) -> dict[str, Any]:
    """The routes of an agent's methods: which may be repeated, and which requests are one message.

    Args:
        wanted: the plan.
        target: the cluster of all.
        told: what the filters learn of it.
        repeatable: paths of methods that may be.
        service: what the paths begin with.
    """

    routes = {
        (repeat, whole): _route(target, told=told, repeat=repeat, whole=whole)
        for repeat in (False, True)
        for whole in (False, True)
    }
    paths = (path for path in repeatable | wanted.whole if not path.startswith(_OWN_ALONE))
    listed = {
        path: routes[path in repeatable, path in wanted.whole] for path in sorted(paths) if path.startswith(service)
    }
    return _look_up(":path", listed, otherwise=routes[False, False])


def _services(wanted: RoutePlan) -> dict[str, tuple[str, dict[str, Any]]]:
    """The prefixes of the services that one agent serves, each with that agent and its routes."""
    prefixes: dict[str, Any] = {}
    for service, agent in sorted(wanted.services.items()):
        prefix = f"/{service}/"
        target = {"cluster": clusters.cluster_name(agent, idempotent=agent not in wanted.opted_out)}
        told = filters.for_agent(agent)
        repeatable = _NONE if agent in wanted.opted_out else wanted.idempotent
        prefixes[prefix] = _methods(wanted, target, told, repeatable, prefix)
        if agent in wanted.cached:
            relay, again = (
                _route(to, told=told, repeat=True, whole=True)
                for to in ({"cluster": clusters.CACHED_PREFIX + agent}, target)
            )
            cacheable = {path for path in wanted.cacheable if path.startswith(prefix)}
            prefixes[prefix] = _by_path(cacheable, _unless_passed_by(relay, again), prefixes[prefix])
        prefixes[prefix] = (agent, prefixes[prefix])
    return prefixes


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


def _route(target: dict[str, Any], **properties: Any) -> dict[str, Any]:
    """One route, as a matcher has it; see `_fields`. Of hundreds a dozen differ."""
    config = typed("envoy.config.route.v3.Route", **_fields(target, **properties))
    return {"action": {"name": "route", "typed_config": resources.repeated(config)}}


def _fields(
    target: dict[str, Any],
    *,
    told: dict[str, Any] | None = None,
    repeat: bool = False,
    patient: bool = False,
    platform: bool = False,
    whole: bool = False,
) -> dict[str, Any]:
    """One route, as a list of routes has it.

    Args:
        target: its cluster.
        told: what the filters learn of it, by their names.
        repeat: the call may be made again once a worker may have seen it.
        patient: it waits for what is away.
        platform: it leads to the platform itself, which is told all that is known of the caller.
        whole: the request is one message, and is held back until it is complete.
    """
    retry_on = (_SAFE, *(() if patient else (_REFUSED,)), *(("reset",) if repeat else ()))
    route: dict[str, Any] = {
        "match": {"prefix": "/"},
        "route": {
            **target,
            "timeout": "0s",
            # Only clusters of sticky agents ask for it. Without a conversation there is none, and chance decides.
            "hash_policy": [{"header": {"header_name": headers.CONVERSATION}}],
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
    route["request_headers_to_remove"] = [CLUSTER_HEADER, *(() if platform else headers.PRIVATE)]
    filtered = {**(told or {}), **(limits.whole_request(LONGEST_MESSAGE_BYTES) if whole else {})}
    if filtered:
        route["typed_per_filter_config"] = filtered
    return route


def _refusal(status: int, reason: str) -> dict[str, Any]:
    route = typed(
        "envoy.config.route.v3.Route",
        match={"prefix": "/"},
        direct_response={"status": status, "body": {"inline_string": reason}},
    )
    return {"action": {"name": "route", "typed_config": route}}
