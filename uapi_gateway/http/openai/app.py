"""The routes of the OpenAI-compatible surface: `/v1/models`, `/v1/chat/completions`, `/v1/responses`."""

from agentruntime.errors import AgentNotFound, NotFound
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from uapi_gateway.http.core import Core
from uapi_gateway.http.openai import completing, responding
from uapi_gateway.http.openai.surface import Endpoint, Surface, guarded
from uapi_gateway.registry import Agent

_EVERY_METHOD = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]


def application(core: Core) -> Starlette:
    """The ASGI application."""
    return Starlette(routes=routes(Surface(core.sender, core.log, core.registry, core.policy)))


def routes(surface: Surface) -> list[BaseRoute]:
    """All of them; they answer whatever path begins with `/v1/`."""

    async def models(request: Request) -> Response:
        surface.reader(request)
        listed = [_model(agent) for agent in surface.agents(surface.caller(request))]
        return JSONResponse({"object": "list", "data": listed})

    async def model(request: Request) -> Response:
        name = request.path_params["model"]
        surface.reader(request)
        found = next((a for a in surface.agents(surface.caller(request)) if a.agent_id == name), None)
        if found is None:
            raise AgentNotFound(name)
        return JSONResponse(_model(found))

    async def nothing(request: Request) -> Response:
        raise NotFound(f"there is no {request.method} {request.url.path} here", reason="UNKNOWN_URL")

    completions, responses = completing.Completions(surface), responding.Responses(surface)
    found: list[tuple[str, str, Endpoint]] = [
        ("GET", "/v1/models", models),
        ("GET", "/v1/models/{model}", model),
        ("POST", "/v1/chat/completions", completions.create),
        ("POST", "/v1/responses", responses.create),
        ("GET", "/v1/responses/{id}", responses.retrieve),
        ("DELETE", "/v1/responses/{id}", responses.delete),
        ("POST", "/v1/responses/{id}/cancel", responses.cancel),
        ("GET", "/v1/responses/{id}/input_items", responses.input_items),
    ]
    listed: list[BaseRoute] = [Route(path, guarded(answer), methods=[method]) for method, path, answer in found]
    return [*listed, Route("/v1/{rest:path}", guarded(nothing), methods=_EVERY_METHOD)]


def _model(agent: Agent) -> dict[str, object]:
    # The directory does not know since when an agent is there, and the client needs a number.
    return {"id": agent.agent_id, "object": "model", "created": 0, "owned_by": "agentruntime"}
