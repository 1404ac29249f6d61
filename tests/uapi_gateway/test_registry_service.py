"""Decisions about registrations and their health."""

import asyncio
import time
from typing import Any

import pytest
from agentruntime._proto.uapi.v1 import agent_registry_pb2 as proto
from agentruntime.errors import InvalidArgument
from google.protobuf.duration_pb2 import Duration
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from uapi_gateway.outward import Outward
from uapi_gateway.probing import Finding, check_health_url
from uapi_gateway.registry import Agent, Endpoint, Registry
from uapi_gateway.registry_service import HealthLoop, came_near, judge, lease_ttl, resolve_services


def test_leases_are_bounded() -> None:
    def asked(**duration: int) -> proto.RegisterAgentRequest:
        return proto.RegisterAgentRequest(lease_ttl=Duration(**duration))

    assert lease_ttl(proto.RegisterAgentRequest()) == 30
    assert lease_ttl(asked(seconds=1)) == 1
    assert lease_ttl(asked(seconds=3600)) == 3600
    for wrong in (asked(), asked(nanos=999_999_999), asked(seconds=-5), asked(seconds=3600, nanos=1)):
        with pytest.raises(InvalidArgument, match="1 second to 1 hour"):
            lease_ttl(wrong)


def test_services_get_their_full_names() -> None:
    known = {"a.v1.S", "b.v1.S", "a.v1.T"}
    assert resolve_services(["T", "c.v1.New", "a.v1.T"], known) == ["a.v1.T", "c.v1.New"]


@pytest.mark.parametrize(
    ("services", "words"),
    [
        ([], "at least one"),
        (["S"], "a.v1.S or b.v1.S"),
        (["New"], "write its full name, like acme.v1.New"),
        (["a..S"], "not the name of a service"),
        (["a/S"], "not the name of a service"),
        (["grpc.health.v1.Health"], "platform's own"),
        (["a.v1.T"] * 101, "at most 100"),
    ],
)
def test_services_that_are_refused(services: list[str], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        resolve_services(services, {"a.v1.S", "b.v1.S", "a.v1.T"})


@pytest.mark.parametrize("url", ["", "ftp://h/", "http://", "http://h:99999/", "http://h/a b", "h:80/x", "https://"])
def test_what_is_no_health_check(url: str) -> None:
    with pytest.raises(InvalidArgument, match="not a health check"):
        check_health_url(url)
    check_health_url("http://localhost:8080/health?full=1")
    check_health_url("https://agents.example.com/health")


def test_unready_after_three_failures_in_a_row_and_ready_after_one_success() -> None:
    endpoint = Endpoint("h:1", ready=True, resolved="1.1.1.1:1")
    bad, good = Finding(False, "it is ill"), Finding(True, resolved="1.1.1.2:1")
    twice = judge(judge(endpoint, bad, 3), bad, 3)
    assert (twice.ready, twice.failures) == (True, 2)
    assert judge(judge(judge(twice, good, 3), bad, 3), bad, 3).ready
    ill = judge(twice, bad, 3)
    assert (ill.ready, ill.reason) == (False, "it is ill")
    assert not judge(ill, bad, 3).ready
    well = judge(ill, good, 3)
    assert (well.ready, well.reason, well.dialled, well.failures) == (True, "", "1.1.1.2:1", 0)


def test_a_name_that_comes_to_stand_for_this_machine_gets_no_calls() -> None:
    far, near = Endpoint("h:1", ready=True, resolved="203.0.113.1:1"), Endpoint("h:1", ready=True, resolved="[::1]:1")
    assert "h:1 is 127.0.0.1:1 now, a loopback address" in came_near(far, Finding(True, resolved="127.0.0.1:1"))
    assert came_near(far, Finding(True, resolved="https://127.0.0.1:1"))
    assert came_near(far, Finding(True, resolved="203.0.113.2:1")) == ""
    assert came_near(near, Finding(True, resolved="127.0.0.1:1")) == ""
    socket = Endpoint("unix:/a", ready=True, resolved="unix:/a")
    assert came_near(socket, Finding(True, resolved="unix:/a")) == ""


@pytest.mark.integration
async def test_a_finding_about_an_earlier_registration_is_dropped() -> None:
    registry = Registry()

    def registered(endpoint: str, health_check: str) -> Agent:
        agent = Agent("x", ("s.S",), (Endpoint(endpoint, ready=True, resolved=endpoint),), health_check=health_check)
        return registry.register(agent, 30, time.time())

    async def moves_while_it_is_checked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readline():
            registered("127.0.0.1:1", "")
            writer.write(b"HTTP/1.1 503 Ill\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(moves_while_it_is_checked, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        before = registered(f"{host}:{port}", f"http://{host}:{port}/health")
        await HealthLoop(registry, Outward(), interval_s=1, failures=1).check(before)
    found = registry.require("x")
    assert [(e.address, e.ready, e.failures) for e in found.endpoints] == [("127.0.0.1:1", True, 0)]


@pytest.mark.integration
async def test_no_answer_of_one_agent_ends_the_checks_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(health_pb2_grpc.HealthServicer):
        async def Check(self, _request: Any, _context: Any) -> health_pb2.HealthCheckResponse:
            return health_pb2.HealthCheckResponse(status=99)

    server = aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(Odd(), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    registry = Registry()
    agent = Agent("x", ("s.S",), (Endpoint(address, ready=True, resolved=address),))
    loop = HealthLoop(registry, Outward(), interval_s=1, failures=1)
    try:
        await loop.check(registry.register(agent, 30, time.time()))
        (found,) = registry.require("x").endpoints
        assert (found.ready, found.reason) == (False, f"{address} says it is 99")
    finally:
        await server.stop(None)

    async def unforeseen(*_arguments: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr("uapi_gateway.probing.probe", unforeseen)
    await loop.check(registry.register(agent, 30, time.time()))
    (found,) = registry.require("x").endpoints
    assert not found.ready
    assert "ZeroDivisionError" in found.reason
