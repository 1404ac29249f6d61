"""The APIs of the HTTP port beside its pages and A2A. What they import is imported when they are first asked."""

import importlib
from typing import Any

from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp

from uapi_gateway.http.core import Core
from uapi_gateway.http.later import Later


def routes(core: Core) -> list[BaseRoute]:
    """Their routes; the first that fits answers."""

    def openai() -> ASGIApp:
        app, surface = (_module(f"uapi_gateway.http.openai.{name}") for name in ("app", "surface"))
        made = surface.Surface(core.sender, core.log, core.registry, core.policy)
        return Router(app.routes(made))

    def agents() -> ASGIApp:
        made: ASGIApp = _module("uapi_gateway.http.runs").application(core)
        return made

    own = Later(agents)
    paths = ("/agents{rest:path}", "/docs", "/openapi.json")
    return [Route("/v1/{rest:path}", Later(openai)), *(Route(path, own) for path in paths)]


def _module(name: str) -> Any:
    return importlib.import_module(name)
