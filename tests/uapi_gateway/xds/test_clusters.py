"""Clusters, endpoints and listeners as Envoy gets them."""

import base64
from pathlib import Path
from typing import Any

import pytest
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2

from uapi_gateway.registry import Traffic
from uapi_gateway.xds.clusters import agent_cluster, agent_endpoints, socket_cluster
from uapi_gateway.xds.listeners import tcp_listener, unix_listener
from uapi_gateway.xds.routes import CLUSTER_HEADER, UNREADABLE


def content(resource: Any, kind: Any) -> dict[str, Any]:
    read: dict[str, Any] = json_format.MessageToDict(
        kind.FromString(resource.body.value), preserving_proto_field_name=True
    )
    return read


def test_clusters_prefer_the_relay_to_dead_workers_and_eject_for_nothing_a_caller_can_cause() -> None:
    cluster = content(agent_cluster("a", Traffic(), idempotent=True), cluster_pb2.Cluster)
    assert cluster["name"] == "agent/a"
    assert cluster["common_lb_config"] == {"healthy_panic_threshold": {}, "update_merge_window": "0s"}
    outlier = cluster["outlier_detection"]
    assert outlier["split_external_local_origin_errors"]
    assert outlier["max_ejection_percent"] == 99
    assert outlier["enforcing_consecutive_5xx"] == outlier["enforcing_consecutive_gateway_failure"] == 0
    assert (
        agent_cluster("a", Traffic(), idempotent=True).version
        == agent_cluster("a", Traffic(), idempotent=True).version
        != agent_cluster("b", Traffic(), idempotent=True).version
    )


@pytest.mark.parametrize(
    ("balancer", "policy"),
    [
        (pool.LOAD_BALANCER_ROUND_ROBIN, None),  # Envoy's default
        (pool.LOAD_BALANCER_STICKY, "MAGLEV"),
        (pool.LOAD_BALANCER_HEALTH_BASED, "LEAST_REQUEST"),
        (pool.LOAD_BALANCER_LEAST_REQUEST, "LEAST_REQUEST"),
    ],
)
def test_load_balancers(balancer: int, policy: str | None) -> None:
    assert (
        content(agent_cluster("a", Traffic(balancer), idempotent=True), cluster_pb2.Cluster).get("lb_policy")
        == policy
    )


def test_a_circuit_breaker_counts_what_a_worker_answers() -> None:
    outlier = content(agent_cluster("a", Traffic(failure_threshold=7), idempotent=True), cluster_pb2.Cluster)[
        "outlier_detection"
    ]
    assert (outlier["consecutive_5xx"], outlier["enforcing_consecutive_5xx"]) == (7, 100)


def test_weights_are_said_where_they_count() -> None:
    made = agent_endpoints("agent/a", {"unix:/1": 40, "unix:/2": 0}, Path("/relay"))
    first = content(made, endpoint_pb2.ClusterLoadAssignment)["endpoints"][0]["lb_endpoints"]
    assert [each.get("load_balancing_weight") for each in first] == [40, None]


def test_endpoints_end_in_the_relay() -> None:
    made = agent_endpoints("agent/a", {"unix:/w": 0, "127.0.0.1:80": 0, "[::1]:81": 0}, Path("/relay"))
    assignment = content(made, endpoint_pb2.ClusterLoadAssignment)
    assert assignment["policy"] == {"overprovisioning_factor": 100_000}
    places = assignment["endpoints"]
    addresses = [[e["endpoint"]["address"] for e in place["lb_endpoints"]] for place in places]
    assert addresses[0] == [
        {"socket_address": {"address": "127.0.0.1", "port_value": 80}},
        {"socket_address": {"address": "::1", "port_value": 81}},
        {"pipe": {"path": "/w"}},
    ]
    assert addresses[1] == [{"pipe": {"path": "/relay"}}]
    assert places[1]["priority"] == 1


def test_the_order_of_workers_changes_nothing() -> None:
    one, other = (
        agent_endpoints("agent/a", dict.fromkeys(order, 0), Path("/r"))
        for order in (["unix:/1", "unix:/2"], ["unix:/2", "unix:/1"])
    )
    assert one.version == other.version


def test_a_socket_is_a_cluster() -> None:
    cluster = content(socket_cluster("pool", Path("/p")), cluster_pb2.Cluster)
    (place,) = cluster["load_assignment"]["endpoints"]
    assert place["lb_endpoints"][0]["endpoint"]["address"] == {"pipe": {"path": "/p"}}


def test_listeners_share_no_port_and_take_no_orders_from_headers() -> None:
    tcp = content(tcp_listener("127.0.0.1", 5, Path("/log")), listener_pb2.Listener)
    assert tcp["enable_reuse_port"] is False
    manager = tcp["filter_chains"][0]["filters"][0]["typed_config"]
    (early,) = manager["early_header_mutation_extensions"]
    mutations = early["typed_config"]["mutations"]
    removed = {each["remove"] for each in mutations if "remove" in each}
    assert removed == {
        CLUSTER_HEADER,
        *UNREADABLE,
        "x-uapi-not-begun",
        "x-uapi-principal",
        "x-uapi-conversation-key",
        "x-uapi-for",
        "x-uapi-concurrency",
    }
    prefixes = [each["remove_on_match"]["key_matcher"]["prefix"] for each in mutations if "remove_on_match" in each]
    assert prefixes == ["x-envoy-", "x-uapi-caller-"]
    added = {
        each["append"]["header"]["key"]: each["append"]["header"]["value"] for each in mutations if "append" in each
    }
    assert added == {CLUSTER_HEADER: "agent/%REQ(x-uapi-agent)%", "x-uapi-for": "%REQ(x-uapi-agent)%"}
    assert manager["stream_idle_timeout"] == "0s"
    unix = content(unix_listener(Path("/s"), Path("/log")), listener_pb2.Listener)
    assert unix["address"] == {"pipe": {"path": "/s", "mode": 0o600}}


def test_envoys_own_answers_carry_a_reason() -> None:
    tcp = content(tcp_listener("127.0.0.1", 5, Path("/log")), listener_pb2.Listener)
    mappers = tcp["filter_chains"][0]["filters"][0]["typed_config"]["local_reply_config"]["mappers"]
    reasons = {}
    for mapper in mappers:
        headers = {h["header"]["key"]: h["header"]["value"] for h in mapper["headers_to_add"]}
        encoded = headers["grpc-status-details-bin"]
        assert not encoded.endswith("=")
        sent = status_pb2.Status.FromString(base64.b64decode(encoded + "=" * (-len(encoded) % 4)))
        info = error_details_pb2.ErrorInfo()
        assert sent.details[0].Unpack(info)
        assert (info.domain, str(sent.code)) == ("uapi.v1", headers["grpc-status"])
        reasons[info.reason] = sent.code
    assert reasons["AGENT_NOT_FOUND"] == 5
    assert reasons["WORKER_LOST"] == reasons["AGENT_NOT_READY"] == 14
