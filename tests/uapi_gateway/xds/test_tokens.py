"""That Envoy decides by them as it should, test_identity_integration.py shows; here, that it takes all of them."""

import json
from itertools import product
from typing import Any

import pytest
from google.protobuf import json_format

from tests.identity_provider import SigningKey
from uapi_gateway.access.identity import Known
from uapi_gateway.access.jwks import reduced
from uapi_gateway.access.providers import Provider
from uapi_gateway.registry import Demands
from uapi_gateway.xds import tokens

KEYS = reduced({"keys": [SigningKey("one").public]})
DEMANDS = {"a": Demands(tls=True), "b": Demands(keys=("ci",)), "c": Demands(oauth2_client_id="chat", tls=True)}
MAPPINGS: tuple[dict[str, list[str]], ...] = (
    {},
    {"staff": ["uapi.call"]},
    {"team": ["uapi.call:a", "uapi.operate:d"]},
    {"boss": ["uapi.administer"], "team": ["uapi.call:c"]},
    {"nothing": []},
)


def known(name: str = "corp", **settings: Any) -> Known:
    return Known(Provider(name=name, issuer=f"https://{name}", audiences=("uapi",), **settings), KEYS)


def _empty(message: Any) -> list[str]:
    """Expressions, values and lists that Envoy would refuse for being empty, and with them every other change."""
    found = []

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            if path.endswith("safeRegex") and not value.get("regex"):
                found.append(path)
            for name, inner in value.items():
                walk(inner, f"{path}.{name}")
        elif isinstance(value, list):
            if not value:
                found.append(path)
            for number, inner in enumerate(value):
                walk(inner, f"{path}[{number}]")
        elif value == "" and not path.endswith("constExpr.stringValue"):
            found.append(path)

    walk(json_format.MessageToDict(message), "")
    return found


@pytest.mark.parametrize(("mapping", "demands"), list(product(MAPPINGS, ({}, DEMANDS))))
def test_no_configuration_makes_a_rule_that_envoy_refuses(
    mapping: dict[str, list[str]], demands: dict[str, Demands]
) -> None:
    for claims in (("scope",), ("scope", "scp", "roles")):
        one = known(grants=mapping, scope_claims=claims)
        for some in ([], [one], [one, known("other")]):
            assert not _empty(tokens.rule(some, demands))
            assert not _empty(tokens.rule(some, demands, ["a", "e"]))
            assert not _empty(tokens.http_rule(some))


def test_providers_without_keys_are_there_with_nobodys() -> None:
    ((name, provider),) = tokens.jwt_providers([Known(known().provider)])
    assert name == "oidc:corp:"
    (key,) = json.loads(provider["local_jwks"]["inline_string"])["keys"]
    # A key of low order would take signatures that anybody can make.
    assert key["kid"] == "nobody"
    assert set(key["x"]) != {"A"}


def test_what_a_provider_is_asked() -> None:
    ((_, provider),) = tokens.jwt_providers([known()])
    assert provider["require_expiration"] is True
    assert provider["audiences"] == ["uapi"]
    assert "remote_jwks" not in provider
    # No other claim goes to a header, and no token to an agent.
    assert [each["claim_name"] for each in provider["claim_to_headers"]] == ["sub", "iss"]
    assert not provider.get("forward")


def test_an_agent_that_is_named_costs_no_expression() -> None:
    def tree(agents: list[str]) -> Any:
        ((case,), _) = _cases(tokens.rule([known()], DEMANDS, agents))
        return case["on_match"]["matcher"]

    expression = tree([])
    assert "cel_expr" in json.dumps(expression)
    named = tree(["a", "e"])
    assert named["on_no_match"]["matcher"] == expression
    by_agent = named["matcher_tree"]["exact_match_map"]["map"]
    assert sorted(by_agent) == ["a", "e"]
    assert "cel_expr" not in json.dumps(by_agent)
    # With a provider's own scopes nothing else counts, and no agent has others.
    mapped = known(grants={"team": ["uapi.call:a"]})
    assert tokens.rule([mapped], DEMANDS, ["a", "e"]) == tokens.rule([mapped], DEMANDS)


def _cases(rule: Any) -> tuple[list[Any], Any]:
    content = json_format.MessageToDict(rule, preserving_proto_field_name=True)["matcher"]
    return content["matcher_list"]["matchers"], content["on_no_match"]
