"""Route decisions: the tree that Envoy gets, walked here as Envoy walks it."""

import re
from dataclasses import replace
from typing import Any

import pytest
from envoy.config.route.v3 import route_pb2
from google.protobuf import json_format

from tests.uapi_gateway.test_registry import agent
from uapi_gateway import descriptors
from uapi_gateway.registry import CachePolicy, Demands, Permissions
from uapi_gateway.xds.edges import Edges, edges
from uapi_gateway.xds.routes import (
    RoutePlan,
    hold_configuration,
    plan,
    route_configuration,
    system_call_configuration,
)

GENERATE = "/uapi.v1.TextGenerationService/GenerateText"
PLAN = RoutePlan(
    services={"s.S": "single", "o.O": "once", "k.K": "kept"},
    idempotent=frozenset((GENERATE, "/s.S/Again", "/o.O/Again", "/k.K/Again", "/k.K/Stream")),
    opted_out=frozenset(("once", "once-01")),
    cached=frozenset(("kept",)),
    cacheable=frozenset((GENERATE, "/s.S/Again", "/o.O/Again", "/k.K/Again")),
    numbered=frozenset(("single-01",)),
)
KEY = {"authorization": "Bearer uapi_eyJhbGciOiJFZERTQSJ9.e30.x"}


def decide(headers: dict[str, str], *, own: bool = False) -> dict[str, Any]:
    """The route that a call with these headers takes."""
    resource = route_configuration("r", PLAN, own=own)
    message = route_pb2.RouteConfiguration.FromString(resource.body.value)
    host = json_format.MessageToDict(message, preserving_proto_field_name=True)["virtual_hosts"][0]
    return walk(host["matcher"], headers)


def walk(matcher: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
    found = None
    if "matcher_list" in matcher:
        matchers = matcher["matcher_list"]["matchers"]
        found = next((each["on_match"] for each in matchers if holds(each["predicate"], headers)), None)
    else:
        tree = matcher["matcher_tree"]
        value = headers.get(tree["input"]["typed_config"]["header_name"], "")
        if "exact_match_map" in tree:
            found = tree["exact_match_map"]["map"].get(value)
        else:
            prefixes = [p for p in tree["prefix_match_map"]["map"] if value.startswith(p)]
            found = tree["prefix_match_map"]["map"][max(prefixes, key=len)] if prefixes else None
    found = found or matcher["on_no_match"]
    if "action" in found:
        route: dict[str, Any] = found["action"]["typed_config"]
        return route
    return walk(found["matcher"], headers)


def holds(predicate: dict[str, Any], headers: dict[str, str]) -> bool:
    if "and_matcher" in predicate:
        return all(holds(each, headers) for each in predicate["and_matcher"]["predicate"])
    if "not_matcher" in predicate:
        return not holds(predicate["not_matcher"], headers)
    single = predicate["single_predicate"]
    value = headers.get(single["input"]["typed_config"]["header_name"])
    wanted = single["value_match"]
    if value is None:
        return False
    if held := wanted.get("contains"):
        return held in value
    return re.fullmatch(wanted["safe_regex"]["regex"], value) is not None


@pytest.mark.parametrize("name", ["", "a", "a-01", "once", "kept", "single-01"])
@pytest.mark.parametrize("more", [{}, KEY])
def test_a2a_goes_to_the_gateway_whatever_it_names(name: str, more: dict[str, str]) -> None:
    wanted = plan([agent("a")], {})
    assert {f"/{descriptors.A2A}/{method}" for method in descriptors.A2A_METHODS} <= wanted.whole
    route = decide({":path": f"/{descriptors.A2A}/SendMessage", **({"x-uapi-agent": name} if name else {}), **more})
    assert route["route"]["cluster"] == "control"
    # The gateway looks by itself who may, so it is told who it is.
    assert route["request_headers_to_remove"] == ["x-uapi-cluster"]


@pytest.mark.parametrize("method", ["SendMessage", "GetConversation"])
def test_conversations_are_the_named_agents_or_the_platforms(method: str) -> None:
    path = f"/{descriptors.CONVERSATIONS}/{method}"
    serving = agent("talks", services=(descriptors.CONVERSATIONS,), cache=CachePolicy(1000))
    planned = plan([serving], {})
    # However few serve it, and whatever a cache keeps.
    assert descriptors.CONVERSATIONS not in planned.services
    assert path not in planned.cacheable
    assert path in planned.whole
    assert (path in planned.idempotent) == (method == "GetConversation")
    assert decide({":path": path})["route"]["cluster"] == "control"
    assert "cluster_header" in decide({":path": path, "x-uapi-agent": "talks"})["route"]


def test_agents_do_not_reach_a2a_by_a_system_call() -> None:
    message = route_pb2.RouteConfiguration.FromString(system_call_configuration("r", PLAN).body.value)
    assert descriptors.A2A not in str(message)


@pytest.mark.parametrize(
    ("header", "value", "refused"),
    [
        ("grpc-timeout", "5S", False),
        ("grpc-timeout", "99999999n", False),
        ("grpc-timeout", "999999999n", True),
        ("grpc-timeout", "soon", True),
        ("grpc-timeout", "1S,2S", True),
        ("grpc-timeout", "", True),
        ("grpc-encoding", "gzip", False),
        ("grpc-encoding", "bogus", True),
        ("x-uapi-agent", "a,x-01", True),
        ("x-uapi-agent", ",a", True),
        ("x-uapi-agent", "UPPER", False),
    ],
)
def test_headers_that_cannot_be_read_are_refused(header: str, value: str, refused: bool) -> None:
    for more in ({}, KEY, {"x-uapi-agent": "a"}):
        route = decide({":path": GENERATE, **more, header: value}, own=True)
        assert ("direct_response" in route) is refused
        if refused:
            assert route["direct_response"]["status"] == 400


def told(route: dict[str, Any]) -> dict[str, str]:
    """The headers that the filters set for a route, before they decide."""
    filters = route.get("typed_per_filter_config", {})
    mutations = filters.get("uapi.agent", {}).get("mutations", {}).get("request_mutations", [])
    return {each["append"]["header"]["key"]: each["append"]["header"]["value"] for each in mutations}


def repeats(route: dict[str, Any]) -> bool:
    return "reset" in route["route"]["retry_policy"]["retry_on"].split(",")


@pytest.mark.parametrize(
    ("headers", "repeated"),
    [
        ({"x-uapi-agent": "a", ":path": GENERATE}, True),
        ({"x-uapi-agent": "a", ":path": "/acme.v1.X/Do"}, False),
        ({"x-uapi-agent": "a", ":path": "/uapi.v1.AgentPool/RunAgent"}, False),
    ],
)
def test_a_named_agent_gets_the_call(headers: dict[str, str], repeated: bool) -> None:
    for more in ({}, KEY):
        route = decide({**headers, **more})
        assert route["route"]["cluster_header"] == "x-uapi-cluster"
        assert route["route"]["cluster_not_found_response_code"] == "NOT_FOUND"
        assert repeats(route) is repeated


@pytest.mark.parametrize("name", ["once", "once-01"])
def test_an_agent_that_opted_out_is_reached_by_routes_that_know_it_only(name: str) -> None:
    for more in ({}, KEY):
        route = decide({"x-uapi-agent": name, ":path": GENERATE, **more})
        assert route["route"]["cluster"] == f"once/{name}"
        assert not repeats(route)


@pytest.mark.parametrize(
    ("path", "cluster", "repeated"),
    [
        ("/s.S/Again", "agent/single", True),
        ("/s.S/Once", "agent/single", False),
        ("/o.O/Again", "once/once", False),
        ("/s.SOther/Do", "control", False),
        ("/uapi.v1.AgentGateway/CallAgent", "control", False),
        ("/uapi.v1.AgentRegistry/ListAgents", "control", False),
        ("/unknown.X/Do", "control", False),
        (GENERATE, "control", False),
    ],
)
def test_without_a_name_the_service_decides(path: str, cluster: str, repeated: bool) -> None:
    for headers in ({":path": path}, {":path": path, "x-uapi-agent": ""}):
        route = decide(headers)
        assert route["route"]["cluster"] == cluster
        assert repeats(route) is repeated
        assert told(route) == (
            {"x-uapi-agent": named, "x-uapi-for": named} if (named := cluster.partition("/")[2]) else {}
        )
        # The platform is told all there is of the caller, an agent only who it is.
        assert ("x-uapi-caller-key" in route["request_headers_to_remove"]) is (cluster != "control")


@pytest.mark.parametrize(
    ("headers", "cached"),
    [
        ({":path": GENERATE, "x-uapi-agent": "kept"}, True),
        ({":path": "/k.K/Again"}, True),
        ({":path": "/k.K/Stream"}, False),
        ({":path": "/k.K/Once"}, False),
        ({":path": "/k.K/Stream", "x-uapi-agent": "kept"}, False),
        # A worker that is called by its name answers itself.
        ({":path": GENERATE, "x-uapi-agent": "kept-01"}, False),
        ({":path": GENERATE, "x-uapi-agent": "a"}, False),
        ({":path": "/s.S/Again"}, False),
    ],
)
def test_what_a_cache_may_answer_goes_to_the_relay(headers: dict[str, str], cached: bool) -> None:
    for more in ({}, KEY):
        route = decide({**headers, **more})
        assert (route["route"].get("cluster") == "cached/kept") is cached
        if cached:
            assert repeats(route)
            named = {} if "x-uapi-agent" in headers else {"x-uapi-agent": "kept", "x-uapi-for": "kept"}
            assert told(route) == named
        for passes_by in ("x-uapi-conversation", "x-uapi-cache"):
            assert decide({**headers, **more, passes_by: ""})["route"].get("cluster") != "relay"


def test_whom_a_cache_serves() -> None:
    known = descriptors.platform_subset([descriptors.TEXT_GENERATION])
    text = (descriptors.TEXT_GENERATION,)
    kept = CachePolicy(1000)
    agents = [
        agent("a", services=text, descriptors=known, cache=kept),
        agent("b", services=text, descriptors=known, cache=kept, idempotent=False),
        agent("c", services=text, descriptors=known),
    ]
    wanted = plan(agents, {})
    assert wanted.cached == {"a"}
    assert wanted.cacheable == {GENERATE}
    assert plan(agents[1:], {}).cacheable == frozenset()


@pytest.mark.parametrize(
    ("path", "cluster"),
    [
        ("/uapi.v1.AgentPool/ListWorkers", "pool"),
        # By way of the gateway, which writes down who did it.
        ("/uapi.v1.AgentPool/StopAgent", "control"),
        ("/uapi.v1.AgentPool/RunAgent", "control"),
        ("/uapi.v1.ImageService/RemoveImage", "control"),
        ("/uapi.v1.ImageService/ListImages", "pool"),
        ("/uapi.v1.AgentRegistry/RegisterAgent", "control"),
        ("/uapi.v1.AgentRegistry/KeepAlive", "control"),
        ("/uapi.v1.AgentRegistry/DeregisterAgent", "control"),
    ],
)
def test_only_this_user_s_own_calls_go_to_the_pool_straight(path: str, cluster: str) -> None:
    assert decide({":path": path}, own=True)["route"]["cluster"] == cluster
    assert decide({":path": path})["route"]["cluster"] == "control"
    for shown in (KEY, {"x-api-key": "uapi_eyJ"}):
        assert decide({":path": path, **shown}, own=True)["route"]["cluster"] == "control"


def test_calls_to_a_worker_are_for_its_agent() -> None:
    for name, worker in (("a-01", True), ("a-123", True), ("a-1", False), ("a", False), ("single-01", False)):
        route = decide({":path": GENERATE, "x-uapi-agent": name})
        assert told(route) == ({"x-uapi-for": "%DYNAMIC_METADATA(uapi:owner)%"} if worker else {})
        assert ("uapi.owner" in route.get("typed_per_filter_config", {})) is worker


def test_deadlines_are_the_callers_and_at_most_a_day() -> None:
    route = decide({"x-uapi-agent": "a", ":path": "/x"})["route"]
    assert route["max_stream_duration"] == {"grpc_timeout_header_max": "86400s"}
    assert route["timeout"] == "0s"


def test_the_plan_of_agents() -> None:
    known = descriptors.platform_subset([descriptors.TEXT_GENERATION])
    text = (descriptors.TEXT_GENERATION,)
    agents = [
        agent("a", "a-01", services=(*text, "s.S"), descriptors=known),
        agent("b", "b-01", services=(*text, descriptors.POOL), descriptors=known, idempotent=False),
        agent("c", services=("s.S",), stopped=True),
    ]
    wanted = plan(agents, {"a-01": "a", "b-01": "b"})
    assert wanted.services == {"s.S": "a"}
    assert GENERATE in wanted.idempotent
    assert wanted.opted_out == {"b", "b-01"}
    assert plan(agents[:1], {}).services == {"s.S": "a", descriptors.TEXT_GENERATION: "a"}
    assert not any(path.startswith("/uapi.v1.AgentPool/") for path in wanted.idempotent)


def test_only_where_the_relay_has_not_tried_yet_is_a_refused_call_repeated() -> None:
    hold = route_pb2.RouteConfiguration.FromString(hold_configuration("h", PLAN).body.value)
    tree = json_format.MessageToDict(hold, preserving_proto_field_name=True)["virtual_hosts"][0]["matcher"]
    held = walk(tree, {":path": GENERATE})
    first = decide({":path": GENERATE, "x-uapi-agent": "a"})
    assert [repeats(each) for each in (held, first)] == [True, True]
    reasons = [each["route"]["retry_policy"]["retry_on"] for each in (held, first)]
    assert ["retriable-headers" in each for each in reasons] == [False, True]


def test_equal_plans_are_equal_routes() -> None:
    one, other = (
        route_configuration("r", RoutePlan({"b": "x", "a": "y"}, frozenset(paths)), own=True)
        for paths in (("/1", "/2"), ("/2", "/1"))
    )
    assert one.version == other.version


def _system_call(headers: dict[str, str]) -> str:
    """Where a worker's call leads: a cluster, or the header that names it."""
    wanted = replace(
        PLAN,
        edges=Edges(
            named={"a": ("a", "b", "e-01", "single"), "d": ("d",), "w": ("w",)},
            everywhere=frozenset(("w",)),
            demanding=frozenset(("d",)),
        ),
    )
    resource = system_call_configuration("r", wanted)
    message = route_pb2.RouteConfiguration.FromString(resource.body.value)
    host = json_format.MessageToDict(message, preserving_proto_field_name=True)["virtual_hosts"][0]
    caller, called = headers.pop("caller"), headers.get("x-uapi-agent", "-")
    made = {"x-uapi-caller-agent": caller, "x-uapi-caller-edge": f"{caller}>{called}", "x-uapi-chain": f",{caller}"}
    found = walk(host["matcher"], {":path": GENERATE, **made, **headers})
    if "direct_response" in found:
        return "refused"
    route = found["route"]
    return str(route.get("cluster") or route["cluster_header"])


@pytest.mark.parametrize(
    ("headers", "leads"),
    [
        ({"caller": "a", "x-uapi-agent": "b"}, "x-uapi-cluster"),
        ({"caller": "a", "x-uapi-agent": "a"}, "x-uapi-cluster"),
        ({"caller": "a", "x-uapi-agent": "c"}, "kernel"),
        ({"caller": "a", "x-uapi-agent": "b-01"}, "kernel"),
        ({"caller": "a", "x-uapi-agent": "b,c"}, "refused"),
        ({"caller": "w", "x-uapi-agent": "d,x-01"}, "refused"),
        ({"caller": "b", "x-uapi-agent": "a"}, "kernel"),
        ({"caller": "aa", "x-uapi-agent": "b"}, "kernel"),
        ({"caller": "d", "x-uapi-agent": "d"}, "x-uapi-cluster"),
        ({"caller": "w", "x-uapi-agent": "b"}, "x-uapi-cluster"),
        ({"caller": "w", "x-uapi-agent": "d"}, "kernel"),
        ({"caller": "w", "x-uapi-agent": "d-01"}, "kernel"),
        ({"caller": "w", "x-uapi-agent": "b-01"}, "kernel"),
        ({"caller": "w", "x-uapi-agent": "D"}, "kernel"),
        ({"caller": "w", "x-uapi-agent": "a/b"}, "kernel"),
        ({"caller": "a", "x-uapi-agent": "e-01"}, "kernel"),
        ({"caller": "w", "x-uapi-agent": "single-01"}, "x-uapi-cluster"),
        ({"caller": "a"}, "kernel"),
        ({"caller": "a", ":path": "/s.S/Again"}, "agent/single"),
        ({"caller": "w", ":path": "/s.S/Again"}, "agent/single"),
        ({"caller": "d", ":path": "/s.S/Again"}, "kernel"),
        ({"caller": "w", ":path": "/uapi.v1.AgentPool/StopAgent"}, "kernel"),
        ({"caller": "w", ":path": "/uapi.v1.SystemCallService/GetSelf"}, "kernel"),
        ({"caller": "a", "x-uapi-agent": "b", "x-uapi-chain": ",a" * 16}, "x-uapi-cluster"),
        ({"caller": "a", "x-uapi-agent": "b", "x-uapi-chain": ",a" * 17}, "kernel"),
    ],
)
def test_system_calls_lead_to_agents_that_the_caller_may_call(headers: dict[str, str], leads: str) -> None:
    assert _system_call(dict(headers)) == leads


def test_edges_are_what_permissions_and_demands_say() -> None:
    agents = [
        replace(agent("a"), permissions=Permissions(agents=("b", "guarded"))),
        replace(agent("w"), permissions=Permissions(agents=("*",))),
        replace(agent("guarded"), demands=Demands(keys=("ci",))),
        replace(agent("tls"), demands=Demands(tls=True)),
    ]
    found = edges(agents)
    assert found.named == {"a": ("a", "b"), "w": ("w",), "guarded": ("guarded",), "tls": ("tls",)}
    assert (found.everywhere, found.demanding) == (frozenset({"w"}), frozenset({"guarded"}))
    assert re.fullmatch(found.callers("tls"), "w")
    assert not re.fullmatch(found.callers("guarded"), "w")
    assert not re.fullmatch(Edges().allowed(), "")
