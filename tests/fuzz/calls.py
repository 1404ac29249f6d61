"""What callers send: registrations, requests to run, JSON for CallAgent, descriptors of agents, HTTP, headers."""

import asyncio
import math
from collections.abc import Callable
from typing import Any

from agentruntime import errors, names, trace
from agentruntime._proto.uapi.v1 import agent_pool_pb2, agent_registry_pb2, text_generation_pb2
from agentruntime.launch import LAG_KEY
from google.protobuf import json_format, struct_pb2
from google.protobuf.message import DecodeError, Message

from agent_pool import health, requests, resources
from agent_pool.policies import Policies
from tests.fuzz.target import Target, is_said, text
from uapi_gateway import descriptors, gateway_service, probing, registry_service
from uapi_gateway.http import guard
from uapi_gateway.registry import Agent
from uapi_gateway.sockets import join, split_endpoint


def _decoded(kind: Any, data: bytes) -> Any:
    """A message out of protobuf's bytes, or of its JSON; None if it is neither."""
    try:
        return kind.FromString(data) if data[:1] != b"{" else json_format.Parse(data, kind())
    except (DecodeError, json_format.ParseError, UnicodeDecodeError, RecursionError, ValueError):
        return None


def registration(data: bytes) -> None:
    """RegisterAgent, as far as nobody else is asked: entered as it is, or InvalidArgument."""
    request = _decoded(agent_registry_pb2.RegisterAgentRequest, data)
    if request is None:
        return
    given = request.registration
    try:
        ttl_s = registry_service.lease_ttl(request)
        names.check_agent_name(given.agent_id)
        host, port = split_endpoint(given.endpoint)
        if given.health_check:
            probing.check_health_url(given.health_check)
        services = registry_service.resolve_services(list(given.services), {"uapi.v1.TextGenerationService"})
    except errors.InvalidArgument as error:
        is_said(error.message)
        return
    assert 1 <= ttl_s <= 3600
    assert not set(services) & descriptors.PLATFORM
    if port:
        assert split_endpoint(join(host, port)) == (host, port)


def endpoint(data: bytes) -> None:
    """An endpoint and a health check: taken apart or InvalidArgument, and what passes holds no line break."""
    written = text(data)
    checks: list[Callable[[str], object]] = [split_endpoint, probing.check_health_url]
    for check in checks:
        try:
            check(written)
        except errors.InvalidArgument as error:
            is_said(error.message)
            continue
        assert written.startswith("unix:") or not set(written) & set("\r\n\0 ")


def run_request(data: bytes) -> None:
    """RunAgent, UpdateAgent, ScaleAgent: read, with policies and resources that make sense, or InvalidArgument."""
    run = _decoded(agent_pool_pb2.RunAgentRequest, data)
    update = _decoded(agent_pool_pb2.UpdateAgentRequest, data)
    scale = _decoded(agent_pool_pb2.ScaleAgentRequest, data)
    stop = _decoded(agent_pool_pb2.StopAgentRequest, data)
    acts: list[Callable[[], object]] = [
        lambda: run and requests.run_request(run),
        lambda: run and resources.resolve(requests.asked(run.settings).resources),
        lambda: run and Policies.of(requests.asked_policies(run.settings), 64),
        lambda: update and requests.update_request(update),
        lambda: scale and requests.scale_request(scale),
        lambda: stop and requests.grace_s(stop),
    ]
    for act in acts:
        try:
            act()
        except errors.InvalidArgument as error:
            is_said(error.message)


def call_data(data: bytes) -> None:
    """CallAgent: JSON as it came in becomes the method's request, or InvalidArgument; and back again."""
    given = _decoded(struct_pb2.Struct, data)
    if given is None:
        return
    kind = text_generation_pb2.DESCRIPTOR.services_by_name["TextGenerationService"]
    for described in (kind.methods_by_name["GenerateText"], kind.methods_by_name["GetHealth"]):
        try:
            message: Message = gateway_service.parse_request(described, gateway_service.fields_of(given))
        except errors.InvalidArgument as error:
            is_said(error.message)
            continue
        message.SerializeToString()
        json_format.MessageToDict(message)


def agent_descriptors(data: bytes) -> None:
    """What an agent says that its services look like: never refused, and nothing of the platform's changes by it."""
    for function in (descriptors.files_of, descriptors.methods_of, descriptors.types_of):
        function.cache_clear()
    types = descriptors.types_of(data)
    services = descriptors.services_of(data)
    agent = Agent("my-agent", tuple(services), (), descriptors=data)
    for method in descriptors.methods_of(data)[:20]:
        types.method(method.service, method.name)
        try:
            described = gateway_service.find_method(agent, method.service, method.name)
            gateway_service.parse_request(described, {"a": 1})
        except (errors.InvalidArgument, errors.Unimplemented) as error:
            is_said(error.message)
    platform = descriptors.platform_set()
    both = descriptors.catalogue({"platform": platform, "my-agent": data}, [*services, *descriptors.PLATFORM])
    alone = descriptors.catalogue({"platform": platform}, descriptors.PLATFORM)
    assert all(both.files[name] == file for name, file in alone.files.items())
    assert all(both.symbols[symbol] == file for symbol, file in alone.symbols.items())
    for name in list(both.files)[:50]:
        both.closure(name)


def http(data: bytes) -> None:
    """A request to the HTTP port: only this machine's own names get in, and nothing that is said breaks it.

    The input is the path, and lines of headers.
    """
    path, *lines = data.split(b"\n")
    headers = [(key.lower(), value.strip()) for key, _, value in (line.partition(b":") for line in lines[:50])]
    asyncio.run(_http(path, headers))


async def _http(path: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    reached: list[str] = []
    answered: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answered.append(message["status"])

    scope = {"type": "http", "method": "GET", "path": text(path), "raw_path": path, "query_string": b"",
             "headers": headers}  # fmt: skip
    await guard.Guard(app, guard.Door(8080))(scope, receive, send)
    hosts = [value for key, value in headers if key == b"host"]
    if reached:
        assert any(value.split(b":")[0].strip(b"[").lower() in _LOCAL for value in hosts), hosts
    else:
        assert answered == [403]


def metadata(data: bytes) -> None:
    """What a call or an answer says beside its message: its trace, how long a worker's event loop was blocked."""
    written = data.decode("latin-1")
    went_on = trace.enter(written)
    assert trace.TraceContext.parse(went_on.header()) == went_on
    assert 0 <= health._lag_s([(LAG_KEY, written)]) < math.inf


_LOCAL = (b"localhost", b"127.0.0.1", b"", b"::1")
TARGETS = [
    Target("registration", registration, (b'{"registration":{"agent_id":"', b'"endpoint":"', b'"services":["')),
    Target("endpoint", endpoint, (b"http://", b"unix:/", b"[::1]:", b"%00", b"\r\n")),
    Target("run-request", run_request, (b'{"settings":{', b'"image":"', b'"idle_timeout":"', b"NaN", b"Infinity")),
    Target("call-data", call_data, (b'{"prompt":"', b'"temperature":', b'"max_tokens":', b"1e400", b'"nan"')),
    Target("descriptors", agent_descriptors, (b"\n\x0btest.proto", b"proto3", b".uapi.v1.", b"uapi/v1/")),
    Target("metadata", metadata, (b"00-", b"-01", b"nan", b"inf", b"1e400")),
    Target("http", http, (b"host:localhost:8080", b"origin:http://", b"\nhost:", b"[::1]", b"@")),
]
