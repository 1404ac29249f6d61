"""AccessService: keys made, listed and ended; what certificates may do; and whom the gateway takes a caller for."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from agentruntime import log
from agentruntime._proto.uapi.v1 import access_pb2 as proto
from agentruntime._proto.uapi.v1 import access_pb2_grpc
from agentruntime.errors import Unavailable
from grpc import aio

from uapi_gateway.access import certified
from uapi_gateway.access.book import Book
from uapi_gateway.access.callers import caller_of
from uapi_gateway.access.identity import IdentityProviders
from uapi_gateway.access.keys import ALL, Wanted

_log = log.get("uapi_gateway.access")
# Envoy takes milliseconds, and a second or two with ten thousand keys. One that is being started again gets the
# newest as it comes up.
_LONGEST_WAIT_S = 15.0
# It confirms a change just before its threads have it.
_THREADS_S = 0.05


class AccessService(access_pb2_grpc.AccessServiceServicer):
    """The service; `Guard` has checked that an administrator calls it.

    Args:
        book: the keys.
        guarded: waits until Envoy decides by the present keys, for at most so many seconds; says whether it does.
        identity: whose tokens are taken.
    """

    def __init__(self, book: Book, guarded: Callable[[float], Awaitable[bool]], identity: IdentityProviders) -> None:
        self._book = book
        self._guarded = guarded
        self._identity = identity

    async def CreateKey(
        self, request: proto.CreateKeyRequest, context: aio.ServicerContext[Any, Any]
    ) -> proto.CreateKeyResponse:
        wanted = Wanted(
            name=request.name,
            role=request.role or proto.ROLE_CALL,
            agents=tuple(request.agents),
            expires_in_s=request.expires_in.ToMicroseconds() / 1e6 if request.HasField("expires_in") else None,
            rate_per_second=request.rate_per_second,
            max_concurrency=request.max_concurrency,
        )
        secret, key = await self._book.create(wanted)
        if not await self._in_force():
            _log.warning("envoy does not know a new key yet", key=key.key_id, name=key.name)
        return proto.CreateKeyResponse(secret=secret, key=key.message())

    async def _in_force(self) -> bool:
        confirmed = await self._guarded(_LONGEST_WAIT_S)
        await asyncio.sleep(_THREADS_S)
        return confirmed

    async def ListKeys(
        self, request: proto.ListKeysRequest, context: aio.ServicerContext[Any, Any]
    ) -> proto.ListKeysResponse:
        return proto.ListKeysResponse(keys=[key.message() for key in self._book.every()])

    async def RevokeKey(
        self, request: proto.RevokeKeyRequest, context: aio.ServicerContext[Any, Any]
    ) -> proto.RevokeKeyResponse:
        key = await self._book.revoke(request.key)
        if not await self._in_force():
            raise Unavailable(
                f"key '{key.name}' is revoked, but Envoy has not confirmed it within {_LONGEST_WAIT_S:g} s; it is "
                "refused as soon as Envoy is connected again: `agent status` says what runs",
                reason="NOT_CONFIRMED",
            )
        return proto.RevokeKeyResponse(key=key.message())

    async def SetCertificateGrant(
        self, request: proto.SetCertificateGrantRequest, context: aio.ServicerContext[Any, Any]
    ) -> proto.SetCertificateGrantResponse:
        said = certified.wanted(request.uri, request.role, tuple(request.agents), time.time())
        await self._book.grant(said)
        await self._decided_so(said.uri)
        return proto.SetCertificateGrantResponse(grant=said.message())

    async def ListCertificateGrants(
        self, request: proto.ListCertificateGrantsRequest, context: aio.ServicerContext[Any, Any]
    ) -> proto.ListCertificateGrantsResponse:
        return proto.ListCertificateGrantsResponse(grants=[said.message() for said in self._book.certified()])

    async def RemoveCertificateGrant(
        self, request: proto.RemoveCertificateGrantRequest, context: aio.ServicerContext[Any, Any]
    ) -> proto.RemoveCertificateGrantResponse:
        now = await self._book.ungrant(request.uri)
        await self._decided_so(request.uri)
        return proto.RemoveCertificateGrantResponse(now=now.message())

    async def _decided_so(self, uri: str) -> None:
        if not await self._in_force():
            raise Unavailable(
                f"what '{uri}' may do is written down, but Envoy has not confirmed it within {_LONGEST_WAIT_S:g} s; "
                "it counts as soon as Envoy is connected again: `agent status` says what runs",
                reason="NOT_CONFIRMED",
            )

    async def GetCaller(
        self, request: proto.GetCallerRequest, context: aio.ServicerContext[Any, Any]
    ) -> proto.GetCallerResponse:
        caller = caller_of(context.invocation_metadata(), self._book.policy)
        grants = [proto.Grant(role=grant.role, agents=grant.agents) for grant in caller.grants]  # type: ignore[arg-type]  # as in Key.message
        return proto.GetCallerResponse(principal=caller.principal, grants=grants)

    async def ListIdentityProviders(
        self, request: proto.ListIdentityProvidersRequest, context: aio.ServicerContext[Any, Any]
    ) -> proto.ListIdentityProvidersResponse:
        caller = caller_of(context.invocation_metadata(), self._book.policy)
        whole = caller.may(proto.ROLE_OPERATE, ALL)
        return proto.ListIdentityProvidersResponse(
            providers=[known.message(whole=whole) for known in self._identity.all()],
            file_error=self._identity.file_error if whole else "",
        )
