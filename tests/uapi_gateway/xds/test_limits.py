"""What callers may take of Envoy, as it is told."""

from pathlib import Path
from typing import Any

import pytest
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.http.header_mutation.v3 import header_mutation_pb2
from google.protobuf import json_format

from tests.uapi_gateway.xds.test_clusters import content
from uapi_gateway.xds import limits
from uapi_gateway.xds.listeners import hold_listener, http_listener, tcp_listener, unix_listener


def buckets(known: dict[str, float], others: float) -> dict[str, tuple[int, str]]:
    """By principal: tokens, and how often they come."""
    message = json_format.MessageToDict(limits.rates(known, others), preserving_proto_field_name=True)
    return {
        each["entries"][0].get("value", ""): (
            each["token_bucket"]["max_tokens"],
            each["token_bucket"]["fill_interval"],
        )
        for each in message.get("descriptors", [])
    }


def test_callers_have_buckets_of_their_own() -> None:
    assert buckets({"key:ci": 10.0, "key:slow": 0.5}, 0) == {"key:ci": (10, "1s"), "key:slow": (1, "2s")}
    found = buckets({"key:ci": 10.0}, 100.0)
    assert found.pop("key:ci") == (10, "1s")
    # Of each other principal, but the platform's own user has all it wants.
    assert found.pop("") == (100, "1s")
    assert found.pop("local")[0] == 1_000_000
    assert not found


def test_without_limits_nothing_is_counted() -> None:
    nothing = header_mutation_pb2.HeaderMutation()
    assert (limits.rates({}, 0), limits.concurrency({})) == (nothing, nothing)


@pytest.mark.parametrize("rate", [0.0001, 1 / 3, 1.0, 7.5, 1e6, 1e9])
def test_envoy_takes_any_rate(rate: float) -> None:
    (bucket,) = limits.rates({"key:a": rate}, 0).descriptors
    tokens = bucket.token_bucket
    interval_s = tokens.fill_interval.ToMilliseconds() / 1000
    assert interval_s >= 0.05
    assert tokens.tokens_per_fill.value / interval_s == pytest.approx(rate, rel=0.01)


def test_a_limit_of_calls_in_flight_is_said_to_the_worker() -> None:
    message: Any = json_format.MessageToDict(limits.concurrency({"key:ci": 4}), preserving_proto_field_name=True)
    (principal,) = message["xds_matcher"]["matcher_tree"]["exact_match_map"]["map"]
    assert principal == "key:ci"
    assert '"x-uapi-concurrency"' in json_format.MessageToJson(limits.concurrency({"key:ci": 4}))


def test_the_platforms_own_user_gets_in_when_nobody_else_does() -> None:
    for listener, everyone in (
        (tcp_listener("127.0.0.1", 5, Path("/log")), True),
        (http_listener("127.0.0.1", 6), True),
        (unix_listener(Path("/s"), Path("/log")), False),
        (hold_listener(Path("/h")), False),
    ):
        told = content(listener, listener_pb2.Listener)
        assert told.get("ignore_global_conn_limit", False) is not everyone
        assert told.get("bypass_overload_manager", False) is not everyone
        # Connections that say nothing are ended.
        assert ("listener_filters" in told) is everyone
