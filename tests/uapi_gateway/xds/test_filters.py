"""Who is told of a caller's token what is in it; that Envoy does so, test_identity_integration.py shows."""

from typing import Any

import pytest
from agentruntime._proto.uapi.v1 import text_generation_pb2
from envoy.config.core.v3 import extension_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.http.jwt_authn.v3 import config_pb2 as jwt_pb2

from tests.uapi_gateway.xds.test_clusters import content
from uapi_gateway import descriptors
from uapi_gateway.access import headers
from uapi_gateway.xds import filters
from uapi_gateway.xds.listeners import http_listener
from uapi_gateway.xds.routes import AGENT_HEADER

CORP = {"issuer": "https://corp", "local_jwks": {"inline_string": "{}"}}
A2A = f"/{descriptors.A2A}/SendMessage"
GENERATE = f"/{text_generation_pb2.DESCRIPTOR.services_by_name['TextGenerationService'].full_name}/Generate"


def required(path: str, sent: dict[str, str]) -> Any:
    """The configuration, and what it requires of a call: its first rule that fits."""
    packed = extension_pb2.TypedExtensionConfig()
    filters.authentication([], [("corp", CORP)]).body.Unpack(packed)
    config = jwt_pb2.JwtAuthentication()
    packed.typed_config.Unpack(config)
    for rule in config.rules:
        wanted = rule.match.headers
        if path.startswith(rule.match.prefix) and all(
            each.name in sent and each.WhichOneof("header_match_specifier") == "present_match" for each in wanted
        ):
            names = [each.provider_name for each in rule.requires.requires_any.requirements if each.provider_name]
            return config, names
    raise AssertionError("the last rule fits all")


@pytest.mark.parametrize(
    ("path", "agent", "told"),
    [(A2A, True, True), (A2A, False, True), (GENERATE, True, False), (GENERATE, False, True)],
)
def test_the_platform_alone_gets_the_claims(path: str, agent: bool, told: bool) -> None:
    config, names = required(path, {AGENT_HEADER: "alpha"} if agent else {})
    assert names[0] == "keys"
    forwarded = {config.providers[name].forward_payload_header for name in names[1:]}
    assert forwarded == ({headers.CLAIMS} if told else {""})


def test_a_request_to_the_http_port_cannot_name_an_agent_in_a_header() -> None:
    listener = content(http_listener("127.0.0.1", 1), listener_pb2.Listener)
    assert f"'remove': '{AGENT_HEADER}'" in str(listener)
