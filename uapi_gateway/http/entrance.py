"""Where requests about agents and their conversations come in. What they need is imported by the first of them."""

import importlib

from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from uapi_gateway.http.core import Core
from uapi_gateway.http.later import Later


def routes(core: Core) -> list[BaseRoute]:
    """What the HTTP port has of it."""

    def make() -> ASGIApp:
        application: ASGIApp = importlib.import_module("uapi_gateway.http.runs").application(core)
        return application

    made = Later(make)
    return [Route(path, made) for path in ("/agents{rest:path}", "/docs", "/openapi.json")]
