"""Asks an agent outside the pool whether it is well, and what it serves."""

import asyncio
import socket
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import grpc
from agentruntime.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from google.protobuf import descriptor_pb2
from google.protobuf.message import DecodeError
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from uapi_gateway.descriptors import REFLECTION
from uapi_gateway.egress import addresses
from uapi_gateway.outward import Options, Outward
from uapi_gateway.sockets import TLS_SCHEME, join, split_endpoint

LONGEST_PROBE_S = 5.0
_OPTIONS: Options = [("grpc.use_local_subchannel_pool", 1)]
_MOST_FILES = 500
_SHOWN = 200


@dataclass(frozen=True)
class Finding:
    """What a health check has found."""

    healthy: bool
    # Why not, in a sentence.
    reason: str = ""
    # The endpoint with its host looked up: Envoy takes only addresses.
    resolved: str = ""


def check_health_url(url: str) -> None:
    """Refuses what is no HTTP address.

    Raises:
        InvalidArgument: it is none.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 80) > 0
    except ValueError:
        good = False
    if not good or not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidArgument(
            f"'{url[:_SHOWN]}' is not a health check; write http://host:port/path or https://…, or leave it empty"
        )


async def check_far(endpoint: str, health_check: str) -> None:
    """Refuses what is on this machine, or next to it: whoever registers from elsewhere would make it callable.

    Raises:
        PermissionDenied: a socket's path, or a host that is, or stands for, such an address.
    """
    if endpoint.startswith("unix:"):
        raise _too_near(endpoint, "a socket of the gateway's machine")
    hosts = [(endpoint, split_endpoint(endpoint)[0])]
    if health_check:
        hosts.append((health_check, urlsplit(health_check).hostname or ""))
    for given, host in hosts:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            continue  # which the probe says
        for _family, _type, _proto, _name, address in found:
            if why := addresses.near(str(address[0])):
                raise _too_near(given, why)


def nearness(resolved: str) -> str:
    """Why a looked up endpoint is on this machine or next to it; "" if it is not."""
    host, port = split_endpoint(resolved)
    return addresses.near(host) if port else "a socket of the gateway's machine"


def _too_near(given: str, why: str) -> PermissionDenied:
    return PermissionDenied(
        f"{given} is {why}, which only the platform's own user may register, over gateway.sock or with the local "
        "token; register an address of the machine where the agent serves",
        reason="NOT_PERMITTED",
    )


async def probe(endpoint: str, health_check: str, outward: Outward, timeout_s: float = LONGEST_PROBE_S) -> Finding:
    """Checks an agent once: by HTTP if it names a URL, else by grpc.health.v1. It must accept connections anyhow."""
    try:
        async with asyncio.timeout(timeout_s):
            resolved = await resolve(endpoint)
            if endpoint.startswith(TLS_SCHEME):
                await _shake_hands(endpoint, resolved, outward)
            if health_check:
                await _connect(resolved)
                await _http_check(health_check, outward)
            else:
                await _grpc_check(endpoint, resolved, outward, timeout_s)
    except TimeoutError:
        return Finding(False, f"{health_check or endpoint} does not answer within {timeout_s:g} s")
    except _Unwell as error:
        return Finding(False, str(error))
    except FailedPrecondition as error:
        return Finding(False, error.message)
    except ssl.SSLCertVerificationError as error:
        return Finding(
            False, f"the gateway does not take the certificate of {health_check or endpoint}: {error.verify_message}"
        )
    except ssl.SSLError as error:
        said = (error.reason or "no handshake").replace("_", " ").lower()
        return Finding(False, f"{health_check or endpoint} does not speak TLS with the gateway ({said})")
    except OSError as error:
        return Finding(False, f"{endpoint} does not accept connections ({error.strerror or error})")
    except UnicodeError:
        return Finding(False, f"{health_check or endpoint} has no host name that could be looked up")
    return Finding(True, resolved=resolved)


class _Unwell(Exception):
    """It answers, and says or shows that it is not well."""


async def resolve(endpoint: str) -> str:
    """The endpoint with its host name as an address that accepts connections.

    Raises:
        OSError: the name is unknown, or nothing accepts there.
    """
    host, port = split_endpoint(endpoint)
    if not port:
        return endpoint
    scheme = TLS_SCHEME if endpoint.startswith(TLS_SCHEME) else ""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    failure: OSError | None = None
    for _family, _type, _proto, _name, address in found:
        candidate = join(str(address[0]), port)
        try:
            await _connect(candidate)
        except OSError as error:
            failure = failure or error
        else:
            return scheme + candidate
    raise failure or OSError(f"{host} has no address")


async def _connect(endpoint: str) -> None:
    host, port = split_endpoint(endpoint)
    opening = asyncio.open_connection(host, port) if port else asyncio.open_unix_connection(host)
    _reader, writer = await opening
    writer.close()


async def _shake_hands(endpoint: str, resolved: str, outward: Outward) -> None:
    """gRPC would only say that it cannot connect."""
    host, port = split_endpoint(resolved)
    name, _ = split_endpoint(endpoint)
    _reader, writer = await asyncio.open_connection(host, port, ssl=outward.context("h2"), server_hostname=name)
    writer.close()


async def _http_check(url: str, outward: Outward) -> None:
    parts = urlsplit(url)
    context = outward.context("http/1.1") if parts.scheme == "https" else None
    port = parts.port or (443 if context else 80)
    reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=context)
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        writer.write(f"GET {target} HTTP/1.1\r\nhost: {parts.netloc}\r\nconnection: close\r\n\r\n".encode())
        line = (await reader.readuntil(b"\n")).decode("latin-1").split(" ", 2)
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise _Unwell(f"{url} does not speak HTTP") from error
    finally:
        writer.close()
    if len(line) < 2 or not line[0].startswith("HTTP/"):
        raise _Unwell(f"{url} does not speak HTTP")
    if line[1] != "200":
        raise _Unwell(f"{url} answers {line[1][:3]}")


async def _grpc_check(endpoint: str, resolved: str, outward: Outward, timeout_s: float) -> None:
    await _connect(resolved)
    async with outward.channel(endpoint, resolved, _OPTIONS) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its methods are set as attributes, untyped
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except aio.AioRpcError as error:
            # No health service: that it speaks gRPC must do. NOT_FOUND is an answer of one that knows no "".
            if error.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND):
                return
            raise _Unwell(f"{endpoint} answers its health check with {error.code().name}") from error
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        # Proto3's enums are open: a peer may send any number.
        known = health_pb2.HealthCheckResponse.ServingStatus.items()
        state = next((name for name, number in known if number == answer.status), str(answer.status))
        raise _Unwell(f"{endpoint} says it is {state}")


async def reflected(endpoint: str, resolved: str, services: list[str], outward: Outward, timeout_s: float) -> bytes:
    """A serialized FileDescriptorSet of services, by the endpoint's own reflection; empty if it has none."""
    async with outward.channel(endpoint, resolved, _OPTIONS) as channel:
        for reflection in REFLECTION:
            try:
                async with asyncio.timeout(timeout_s):
                    return await _reflect(channel, reflection, services)
            except (aio.AioRpcError, TimeoutError, DecodeError):
                continue
    return b""


async def _reflect(channel: aio.Channel, reflection: str, services: list[str]) -> bytes:
    files: dict[str, descriptor_pb2.FileDescriptorProto] = {}
    call = channel.stream_stream(
        f"/{reflection}/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )()

    async def ask(question: reflection_pb2.ServerReflectionRequest) -> None:
        await call.write(question)
        answer = await call.read()
        if answer is aio.EOF or not isinstance(answer, reflection_pb2.ServerReflectionResponse):
            return
        for serialized in answer.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(serialized)
            files.setdefault(file.name, file)

    try:
        for service in services:
            await ask(reflection_pb2.ServerReflectionRequest(file_containing_symbol=service))
        missing = _missing(files)
        while missing and len(files) < _MOST_FILES:
            known = len(files)
            for name in missing:
                await ask(reflection_pb2.ServerReflectionRequest(file_by_filename=name))
            missing = _missing(files)
            if len(files) == known:
                break
        await call.done_writing()
    finally:
        call.cancel()
    wire: bytes = descriptor_pb2.FileDescriptorSet(file=files.values()).SerializeToString()
    return wire if files else b""


def _missing(files: dict[str, descriptor_pb2.FileDescriptorProto]) -> set[str]:
    return {name for file in files.values() for name in file.dependency} - files.keys()
