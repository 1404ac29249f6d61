"""Where requests of the OpenAI API come in. What they need is imported by the first of them."""

import importlib
from collections.abc import Callable

from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from uapi_gateway.access.policy import Policy
from uapi_gateway.conversations.log import EventLog
from uapi_gateway.conversations.sending import Sender
from uapi_gateway.http.later import Later
from uapi_gateway.registry import Registry


def routes(sender: Sender, log: EventLog, registry: Registry, policy: Callable[[], Policy]) -> list[BaseRoute]:
    """What the HTTP port has of it."""

    def make() -> ASGIApp:
        module = importlib.import_module("uapi_gateway.http.openai.app")
        application: ASGIApp = module.application(sender, log, registry, policy)
        return application

    return [Route("/v1{rest:path}", Later(make))]
