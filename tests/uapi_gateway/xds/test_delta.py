"""Incremental xDS: what one Envoy is sent, and in which order."""

from typing import Any

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf import any_pb2

from uapi_gateway.xds.cache import Cache
from uapi_gateway.xds.delta import Session
from uapi_gateway.xds.resources import CLUSTER, ENDPOINTS, LISTENER, ROUTE, Resource


def resource(name: str, version: str = "1") -> Resource:
    return Resource(name, version, any_pb2.Any())


class Envoy:
    """A session, and the cache that it serves."""

    def __init__(self) -> None:
        self.cache = Cache()
        self.woken = 0
        self.session = Session(self.cache, self._wake)
        self.cache.listen(self.session)

    def _wake(self) -> None:
        self.woken += 1

    def asks(self, kind: str, *names: str, has: dict[str, str] | None = None, drops: tuple[str, ...] = ()) -> None:
        self.session.request(
            discovery_pb2.DeltaDiscoveryRequest(
                type_url=kind,
                resource_names_subscribe=names,
                resource_names_unsubscribe=drops,
                initial_resource_versions=has or {},
            )
        )

    def gets(self) -> list[tuple[str, list[str], list[str]]]:
        return [
            (response.type_url, [r.name for r in response.resources], list(response.removed_resources))
            for response in self.session.flush()
        ]


def test_wildcards_get_everything_then_changes() -> None:
    envoy = Envoy()
    envoy.cache.put(CLUSTER, resource("a"))
    envoy.asks(CLUSTER)
    assert envoy.gets() == [(CLUSTER, ["a"], [])]
    envoy.cache.put(CLUSTER, resource("a"))
    assert envoy.gets() == []
    envoy.cache.put(CLUSTER, resource("a", "2"))
    envoy.cache.put(CLUSTER, resource("b"))
    assert envoy.gets() == [(CLUSTER, ["a", "b"], [])]
    envoy.cache.remove(CLUSTER, "a")
    assert envoy.gets() == [(CLUSTER, [], ["a"])]


def test_an_empty_world_is_answered_too() -> None:
    envoy = Envoy()
    envoy.asks(CLUSTER)
    assert envoy.gets() == [(CLUSTER, [], [])]
    assert envoy.gets() == []


def test_names_get_what_they_ask_for_and_hear_what_is_not_there() -> None:
    envoy = Envoy()
    for name in ("a", "b"):
        envoy.cache.put(ENDPOINTS, resource(name))
    envoy.asks(ENDPOINTS, "a", "gone")
    assert envoy.gets() == [(ENDPOINTS, ["a"], []), (ENDPOINTS, [], ["gone"])]
    envoy.cache.put(ENDPOINTS, resource("b", "2"))
    assert envoy.gets() == []
    envoy.asks(ENDPOINTS, drops=("a",))
    envoy.cache.put(ENDPOINTS, resource("a", "2"))
    assert envoy.gets() == []


def test_a_name_asked_for_again_is_sent_again() -> None:
    envoy = Envoy()
    envoy.cache.put(ENDPOINTS, resource("a"))
    for _ in range(2):
        envoy.asks(ENDPOINTS, "a")
        assert envoy.gets() == [(ENDPOINTS, ["a"], [])]


def test_a_reconnect_sends_only_what_differs_and_takes_back_what_is_gone() -> None:
    envoy = Envoy()
    envoy.cache.put(CLUSTER, resource("same"))
    envoy.cache.put(CLUSTER, resource("changed", "2"))
    envoy.asks(CLUSTER, has={"same": "1", "changed": "1", "gone": "1"})
    assert envoy.gets() == [(CLUSTER, ["changed"], []), (CLUSTER, [], ["gone"])]
    envoy.cache.put(ENDPOINTS, resource("same"))
    envoy.asks(ENDPOINTS, "same", has={"same": "1"})
    assert envoy.gets() == [(ENDPOINTS, [], [])]


def test_a_cluster_that_changes_takes_its_endpoints_along() -> None:
    envoy = Envoy()
    envoy.cache.put(CLUSTER, resource("a"))
    envoy.cache.put(ENDPOINTS, resource("a"))
    envoy.asks(CLUSTER)
    envoy.asks(ENDPOINTS, "a")
    envoy.gets()
    envoy.cache.put(CLUSTER, resource("a", "2"))
    assert envoy.gets() == [(CLUSTER, ["a"], []), (ENDPOINTS, ["a"], [])]


def test_made_before_broken() -> None:
    envoy = Envoy()
    for kind in (ROUTE, LISTENER, ENDPOINTS, CLUSTER):
        envoy.cache.put(kind, resource("old"))
        envoy.asks(kind, *(("old", "new") if kind in (ROUTE, ENDPOINTS) else ()))
    list(envoy.session.flush())
    for kind in (ROUTE, LISTENER, ENDPOINTS, CLUSTER):
        envoy.cache.put(kind, resource("new"))
        envoy.cache.remove(kind, "old")
    sent = envoy.gets()
    assert [kind for kind, changed, _ in sent if changed] == [CLUSTER, ENDPOINTS, LISTENER, ROUTE]
    assert [kind for kind, _, gone in sent if gone] == [ROUTE, LISTENER, ENDPOINTS, CLUSTER]
    assert sent[-1] == (CLUSTER, [], ["old"])


def test_acknowledgements_ask_for_nothing() -> None:
    envoy = Envoy()
    envoy.asks(CLUSTER)
    envoy.gets()
    before = envoy.woken
    envoy.asks(CLUSTER)
    assert envoy.woken == before
    assert envoy.gets() == []


def test_endpoints_are_taken_up_when_envoy_says_so() -> None:
    envoy = Envoy()
    for name in ("a", "b"):
        envoy.cache.put(ENDPOINTS, resource(name))
    envoy.asks(ENDPOINTS, "a", "b", has={"a": "1"})
    assert envoy.session.endpoints == {"a"}
    (sent,) = envoy.session.flush()
    assert envoy.session.endpoints == {"a"}
    envoy.session.request(discovery_pb2.DeltaDiscoveryRequest(type_url=ENDPOINTS, response_nonce=sent.nonce))
    assert envoy.session.endpoints == {"a", "b"}
    envoy.cache.put(ENDPOINTS, resource("c"))
    envoy.asks(ENDPOINTS, "c", drops=("b",))
    (sent,) = envoy.session.flush()
    refusal = discovery_pb2.DeltaDiscoveryRequest(type_url=ENDPOINTS, response_nonce=sent.nonce)
    refusal.error_detail.message = "no"
    envoy.session.request(refusal)
    assert envoy.session.endpoints == {"a"}
    envoy.cache.remove(ENDPOINTS, "a")
    envoy.gets()
    assert envoy.session.endpoints == set()


def test_nonces_differ() -> None:
    envoy = Envoy()
    envoy.cache.put(CLUSTER, resource("a"))
    envoy.asks(CLUSTER)
    first: Any = next(envoy.session.flush())
    envoy.cache.put(CLUSTER, resource("a", "2"))
    second: Any = next(envoy.session.flush())
    assert first.nonce != second.nonce


def test_a_route_waits_until_its_new_cluster_has_been_asked_for_endpoints() -> None:
    envoy = Envoy()
    for kind in (CLUSTER, ENDPOINTS, ROUTE):
        envoy.asks(kind, *(("r",) if kind == ROUTE else ()))
    list(envoy.session.flush())
    envoy.cache.put(CLUSTER, resource("a"))
    envoy.cache.put(ENDPOINTS, resource("a"))
    envoy.cache.put(ROUTE, resource("r"))
    assert envoy.gets() == [(CLUSTER, ["a"], [])]
    assert envoy.gets() == []
    envoy.asks(ENDPOINTS, "a")
    assert envoy.gets() == [(ENDPOINTS, ["a"], []), (ROUTE, ["r"], [])]
    # One without endpoints to ask for holds nothing up.
    envoy.cache.put(CLUSTER, resource("static"))
    envoy.cache.put(ROUTE, resource("r", "2"))
    assert envoy.gets() == [(CLUSTER, ["static"], []), (ROUTE, ["r"], [])]


def test_a_cluster_that_is_refused_holds_no_route_up() -> None:
    envoy = Envoy()
    for kind in (CLUSTER, ENDPOINTS, ROUTE):
        envoy.asks(kind, *(("r",) if kind == ROUTE else ()))
    list(envoy.session.flush())
    for kind, name in ((CLUSTER, "a"), (ENDPOINTS, "a"), (ROUTE, "r")):
        envoy.cache.put(kind, resource(name))
    assert envoy.gets() == [(CLUSTER, ["a"], [])]
    refusal = discovery_pb2.DeltaDiscoveryRequest(type_url=CLUSTER)
    refusal.error_detail.message = "no"
    envoy.session.request(refusal)
    assert envoy.gets() == [(ROUTE, ["r"], [])]


def test_what_old_routes_lead_to_stays_while_the_new_ones_wait() -> None:
    envoy = Envoy()
    for kind in (CLUSTER, ENDPOINTS, ROUTE):
        envoy.asks(kind, *(("r",) if kind == ROUTE else ()))
    list(envoy.session.flush())
    envoy.cache.put(CLUSTER, resource("old"))
    envoy.cache.put(ROUTE, resource("r"))
    assert envoy.gets() == [(CLUSTER, ["old"], []), (ROUTE, ["r"], [])]
    envoy.cache.remove(CLUSTER, "old")
    for kind, name in ((CLUSTER, "new"), (ENDPOINTS, "new")):
        envoy.cache.put(kind, resource(name))
    envoy.cache.put(ROUTE, resource("r", "2"))
    assert envoy.gets() == [(CLUSTER, ["new"], [])]
    envoy.asks(ENDPOINTS, "new")
    assert envoy.gets() == [(ENDPOINTS, ["new"], []), (ROUTE, ["r"], []), (CLUSTER, [], ["old"])]


def test_routes_are_taken_up_when_envoy_has_the_newest() -> None:
    envoy = Envoy()
    envoy.cache.put(ROUTE, resource("r"))
    envoy.asks(ROUTE, "r")

    def taken_up(nonce: str) -> bool:
        envoy.session.request(discovery_pb2.DeltaDiscoveryRequest(type_url=ROUTE, response_nonce=nonce))
        return envoy.session.in_force(ROUTE)

    [first] = envoy.session.flush()
    assert not envoy.session.in_force(ROUTE)
    envoy.cache.put(ROUTE, resource("r", "2"))
    assert not taken_up(first.nonce)
    [second] = envoy.session.flush()
    assert not taken_up(first.nonce)
    assert taken_up(second.nonce)
    envoy.cache.put(ROUTE, resource("r", "3"))
    assert not envoy.session.in_force(ROUTE)


def test_it_is_settled_once_all_that_was_sent_is_acknowledged() -> None:
    envoy = Envoy()
    # It wants none.
    assert envoy.session.settled(ENDPOINTS)
    envoy.cache.put(ENDPOINTS, resource("a"))
    envoy.asks(ENDPOINTS, "a")
    assert not envoy.session.settled(ENDPOINTS)
    for version in "23":
        [response] = envoy.session.flush()
        assert not envoy.session.settled(ENDPOINTS)
        envoy.session.request(discovery_pb2.DeltaDiscoveryRequest(type_url=ENDPOINTS, response_nonce=response.nonce))
        assert envoy.session.settled(ENDPOINTS)
        # At once, before it is sent.
        envoy.cache.put(ENDPOINTS, resource("a", version))
        assert not envoy.session.settled(ENDPOINTS)
