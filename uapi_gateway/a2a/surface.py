"""A2A as its SDK serves it: JSON-RPC and REST as an ASGI application, and the gRPC servicer.

Imported by the first call (`entrance.py`). Over HTTP an agent is named by the path, over gRPC by the tenant.
"""

import codecs
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from a2a.server.context import ServerCallContext
from a2a.server.request_handlers.grpc_handler import GrpcHandler, GrpcServerCallContextBuilder
from a2a.server.routes.common import ServerCallContextBuilder
from a2a.server.routes.jsonrpc_routes import create_jsonrpc_routes
from a2a.server.routes.rest_routes import create_rest_routes
from a2a.types import a2a_pb2
from a2a.utils.errors import A2AError
from agentruntime import errors
from google.protobuf.json_format import MessageToDict
from grpc import aio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from uapi_gateway import sockets
from uapi_gateway.a2a import cards
from uapi_gateway.a2a.cards import Addresses
from uapi_gateway.a2a.core import CARD_PATH, Core
from uapi_gateway.a2a.failures import Refused
from uapi_gateway.a2a.handler import CALL, Call, Handler
from uapi_gateway.a2a.refusals import refusal
from uapi_gateway.access.callers import caller_of
from uapi_gateway.access.policy import Caller
from uapi_gateway.conversations import sending
from uapi_gateway.http import bounds
from uapi_gateway.http.presence import while_there

_PATH = "/agents/{agent}/a2a"
Endpoint = Callable[[Request], Awaitable[Response]]


class Surface:
    """Args:
    core: what it stands on.
    """

    service: Any = a2a_pb2.DESCRIPTOR.services_by_name["A2AService"]

    def __init__(self, core: Core) -> None:
        # They log each request that cannot be read, with a traceback: callers could fill the log.
        for name in ("a2a.server.routes", "a2a.utils"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._core = core
        self._handler = Handler(core.sender, core.log)
        context = _OverHttp()
        served = [
            *create_jsonrpc_routes(self._handler, _PATH, context),
            *create_rest_routes(self._handler, context, path_prefix=_PATH),
        ]
        # The SDK's routes with a tenant before the path would be a second way to name an agent.
        called = [
            Route(route.path, self._admitted(route.endpoint), methods=list(route.methods or ()))
            for route in served
            if isinstance(route, Route)
        ]
        pages = [Route("/agents/{agent}" + CARD_PATH, self._card), Route(CARD_PATH, self._only_card)]
        self.application = Starlette(routes=[*called, *pages])

    def servicer(self, caller: Caller, agent: str, method: str) -> Any:
        """The behaviour of a method of the gRPC service, for one call."""
        return getattr(_Servicer(self._handler, _OverGrpc(Call(caller, agent))), method)

    def _admitted(self, endpoint: Endpoint) -> Endpoint:
        """The endpoint, for callers who may call the agent."""

        async def answer(request: Request) -> Response:
            call = Call(self._caller(request), request.path_params["agent"])
            try:
                agent = self._core.sender.admit(call.caller, call.agent)
                _check_readable(await request.body())
            except errors.AgentError as error:
                return refusal(error)
            request.state.call = call
            answering = endpoint(request)
            if sending.converses(agent):
                # What was said goes on, whoever waits for it.
                response = await answering
            else:
                try:
                    response = await while_there(request, answering)
                except errors.Cancelled as error:
                    return refusal(error)
            # REST has a status for what A2A has no name for; of JSON-RPC the status is always 200.
            return refusal(call.refused) if call.refused and response.status_code >= 400 else response

        return answer

    async def _card(self, request: Request) -> Response:
        try:
            agent = self._core.sender.admit(self._caller(request), request.path_params["agent"])
            if not cards.converses(agent):
                raise errors.FailedPrecondition(
                    f"agent '{agent.agent_id}' takes no messages, so it has no card", reason="NO_CONVERSATIONS"
                )
        except errors.AgentError as error:
            return refusal(error)
        return JSONResponse(MessageToDict(cards.card(agent, self._addresses(request), self._core.policy())))

    async def _only_card(self, request: Request) -> Response:
        """The card of the only agent that the caller may talk to; of several, where theirs are."""
        caller, found = self._caller(request), []
        for agent in self._core.registry.agents():
            try:
                found.append(self._core.sender.admit(caller, agent.agent_id))
            except errors.AgentError:
                # Not for this caller.
                continue
        found = [agent for agent in found if cards.converses(agent)]
        addresses = self._addresses(request)
        if len(found) == 1:
            return JSONResponse(MessageToDict(cards.card(found[0], addresses, self._core.policy())))
        where = [addresses.agent(agent.agent_id) + CARD_PATH for agent in found]
        reason = (
            f"several agents are here, each has a card: {', '.join(where)}" if where else "no agent takes messages"
        )
        return refusal(errors.NotFound(reason, reason="CARD_NOT_FOUND"), cards=where)

    def _caller(self, request: Request) -> Caller:
        return caller_of(request.headers.items(), self._core.policy())

    def _addresses(self, request: Request) -> Addresses:
        """As the client reached the port, be it by another name or through a tunnel."""
        host = request.url.hostname or "localhost"
        scheme = "https" if self._core.tls else "http"
        return Addresses(f"{scheme}://{request.url.netloc}", sockets.join(host, self._core.grpc_port))


class _OverHttp(ServerCallContextBuilder):
    """What handlers learn of a request over HTTP; the version that it asks for is in its headers."""

    def build(self, request: Request) -> ServerCallContext:
        return ServerCallContext(state={CALL: request.state.call, "headers": dict(request.headers)})


class _OverGrpc(GrpcServerCallContextBuilder):
    def __init__(self, call: Call) -> None:
        self._call = call

    def build(self, context: aio.ServicerContext[Any, Any]) -> ServerCallContext:
        return ServerCallContext(state={CALL: self._call})


class _Servicer(GrpcHandler):
    async def abort_context(self, error: A2AError, context: aio.ServicerContext[Any, Any]) -> None:
        if isinstance(error, Refused):
            # The server's interceptor says it.
            raise error.error
        await super().abort_context(error, context)


def _check_readable(body: bytes) -> None:
    """Refuses what the SDK would call an error of ours; other mistakes it names itself.

    Raises:
        InvalidArgument: it is no text, or JSON that lies deeper than can be read.
        MessageTooLarge: it has more values than anything is made of.
    """
    bounds.check_body(body)
    if b"\0" in body or body.startswith(codecs.BOM_UTF8):
        # The SDK would read it by another encoding than is looked at here.
        raise errors.InvalidArgument("the body is not plain UTF-8", reason="INVALID_DATA")
    try:
        # Of bytes it would let half characters pass.
        read = json.loads(body.decode() or "{}")
    except UnicodeDecodeError:
        raise errors.InvalidArgument("the body is not plain UTF-8", reason="INVALID_DATA") from None
    except RecursionError:
        raise errors.InvalidArgument("the body's JSON is too deep", reason="INVALID_DATA") from None
    except ValueError:
        # It has a name in each of the protocols.
        return
    bounds.check(read)
