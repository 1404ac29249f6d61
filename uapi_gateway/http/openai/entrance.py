"""Where requests of the OpenAI API come in. What they need is imported by the first of them."""

import importlib

from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from uapi_gateway.http.core import Core
from uapi_gateway.http.later import Later


def routes(core: Core) -> list[BaseRoute]:
    """What the HTTP port has of it."""

    def make() -> ASGIApp:
        app = importlib.import_module("uapi_gateway.http.openai.app")
        made: ASGIApp = app.application(core)
        return made

    return [Route("/v1{rest:path}", Later(make))]
