"""Tokens of identity providers in Envoy's filters: how they are checked, whom they make a caller, what they allow.

What a token allows is matched in its claims, as `jwt_authn` leaves them in the call's metadata, so that neither the
number of agents nor that of callers makes a call dearer. Of the first agents that came the scopes are looked for by
name; an expression does it for all others.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from envoy.extensions.filters.http.header_mutation.v3 import header_mutation_pb2
from envoy.extensions.matching.common_inputs.network.v3 import network_inputs_pb2
from envoy.extensions.matching.input_matchers.metadata.v3 import metadata_pb2
from google.protobuf import json_format
from xds.type.matcher.v3 import matcher_pb2

from uapi_gateway.access import headers, keys, scopes
from uapi_gateway.access.identity import Known
from uapi_gateway.access.providers import Provider
from uapi_gateway.access.scopes import EVERY_AGENT, Role
from uapi_gateway.registry import Demands
from uapi_gateway.xds import cel, filters, rules
from uapi_gateway.xds.resources import Resource

# Where jwt_authn leaves the claims of a token that is good, each provider's under its name.
_CLAIMS = "envoy.filters.http.jwt_authn"
# Between the provider's clock and ours.
CLOCK_SKEW_S = 30
# Visible ASCII but quotes, commas, semicolons and backslashes: what no log and no header can be misread for.
_SUBJECT = r"[!#-+\-./0-:<-\[\]-~]{1,255}"
# No principal is written so.
_NOBODY = "-"
_Predicate = matcher_pb2.Matcher.MatcherList.Predicate


def jwt_providers(known: Iterable[Known]) -> list[tuple[str, dict[str, Any]]]:
    """By name, each as jwt_authn takes it. One whose keys are not known yet is there, too: its tokens are refused."""
    return [(each.provider.principal_prefix, _jwt_provider(each)) for each in known]


def _jwt_provider(known: Known) -> dict[str, Any]:
    provider = known.provider
    return {
        "issuer": provider.issuer,
        "audiences": list(provider.audiences),
        "require_expiration": True,
        "clock_skew_seconds": CLOCK_SKEW_S,
        "local_jwks": {"inline_string": known.keys.as_json() if known.keys else keys.nobodys_keys()},
        # And not in the query, where it would stand in logs.
        "from_headers": [{"name": "authorization", "value_prefix": f"{scheme} "} for scheme in ("Bearer", "bearer")],
        "payload_in_metadata": provider.name,
        "normalize_payload_in_metadata": {"space_delimited_claims": list(provider.scope_claims)},
        # The issuer is there in any case, and not empty.
        "claim_to_headers": [
            {"header_name": f"{headers.SUBJECT}{provider.name}", "claim_name": provider.subject_claim},
            {"header_name": f"{headers.ISSUER}{provider.name}", "claim_name": "iss"},
        ],
        "jwt_cache_config": {"jwt_cache_size": filters.CHECKED_TOKENS},
    }


def identification(known: Iterable[Known]) -> Resource:
    """The filter that makes principals of tokens, and says which scopes would do for the agent that is called."""
    mutations: list[dict[str, Any]] = []
    providers = [each.provider for each in known]
    for provider in providers:
        subject, issuer = f"{headers.SUBJECT}{provider.name}", f"{headers.ISSUER}{provider.name}"
        # The issuer's header is there only if the token is this provider's, and makes room for the principal: of one
        # without a subject that is "oidc:corp:", which may do nothing.
        principal = {"key": issuer, "value": f"{provider.principal_prefix}%REQ({subject})%"}
        mutations += [
            {"append": {"header": principal, "append_action": "OVERWRITE_IF_EXISTS"}},
            # One that turns out empty sets nothing.
            filters.set_header(headers.PRINCIPAL, f"%REQ({issuer})%", absent=True),
            {"remove": subject},
            {"remove": issuer},
        ]
    if any(not provider.grants for provider in providers):
        mutations += [
            filters.set_header(header, f"uapi.{role.name.lower()}:%REQ({headers.FOR})%")
            for role, header in headers.ENOUGH.items()
        ]
    content = {"mutations": {"request_mutations": mutations}}
    return filters.extension(filters.TOKENS, json_format.ParseDict(content, header_mutation_pb2.HeaderMutation()))


def rule(known: Iterable[Known], demands: Mapping[str, Demands], agents: Sequence[str] = ()) -> Any:
    """What whoever brings a token may call; whoever brings none is refused.

    Args:
        known: the providers.
        demands: of agents.
        agents: whose scopes are looked for by name, which is cheaper than by an expression, as others' are.
    """
    return rules.first(
        ((_is_of(each.provider), _provider_rule(each.provider, demands, agents)) for each in known), rules.DENY
    )


def http_rule(known: Iterable[Known]) -> Any:
    """The same for the HTTP pages, which are for those who operate all agents."""
    cases = [
        (_both(_is_of(each.provider), _holds(each.provider, Role.OPERATE, EVERY_AGENT)), rules.ALLOW)
        for each in known
    ]
    return rules.first(cases, rules.DENY)


def bearers(known: Iterable[Known]) -> Any:
    """Whoever brings a token of theirs may, whatever its scopes are."""
    return rules.first(((_is_of(each.provider), rules.ALLOW) for each in known), rules.DENY)


def _is_of(provider: Provider) -> Any:
    """The principal is the provider's, and nothing odd is in it."""
    return rules.matches(headers.PRINCIPAL, provider.principal_prefix + _SUBJECT)


def _provider_rule(provider: Provider, demands: Mapping[str, Demands], agents: Sequence[str]) -> Any:
    leaves = {agent: _demanded(provider, demanded) for agent, demanded in demands.items()}
    anywhere = rules.look_up(headers.FOR, leaves, rules.ALLOW)
    holds = [_holds(provider, Role.CALL, EVERY_AGENT)]
    named = {
        agent: rules.first([(_holds(provider, Role.CALL, agent), leaves.get(agent, rules.ALLOW))], rules.DENY)
        for agent in sorted(_agents(provider) if provider.grants else agents)
    }
    if provider.grants:
        return rules.first([(_any(holds), anywhere)], rules.look_up(headers.FOR, named, rules.PLATFORM_ONLY))
    holds += [_names_agent(provider.name, claim, header) for claim in provider.scope_claims
              for header in headers.ENOUGH.values()]  # fmt: skip
    return rules.look_up(headers.FOR, named, rules.first([(_any(holds), anywhere)], rules.PLATFORM_ONLY))


def _agents(provider: Provider) -> set[str]:
    """Those that its own scopes and roles stand for."""
    given = scopes.grants(provider.grants, provider.grants)
    return {grant.agent for grant in given if grant.agent != EVERY_AGENT}


def _demanded(provider: Provider, demands: Demands) -> Any:
    allowed = rules.IF_SECURE if demands.tls else rules.ALLOW
    if demands.oauth2_client_id:
        return rules.first([(_client(provider.name, demands.oauth2_client_id), allowed)], rules.DENY)
    return rules.DENY if demands.keys else allowed


def _holds(provider: Provider, role: Role, agent: str) -> Any:
    """The token has one of the scopes or roles that are enough."""
    enough = scopes.sufficient(role, agent, provider.grants)
    if not enough:
        # Of a mapping in which nothing is. Envoy takes no empty expression.
        return rules.matches(headers.PRINCIPAL, _NOBODY)
    return _one_of(provider.name, provider.scope_claims, enough)


@lru_cache(maxsize=1024)
def _one_of(provider: str, claims: tuple[str, ...], enough: tuple[str, ...]) -> Any:
    """One of the claims has one of some texts in its list."""
    values = {"or_match": {"value_matchers": [_text(value) for value in enough]}} if enough[1:] else _text(enough[0])
    return _any([_claim(provider, claim, {"list_match": {"one_of": values}}) for claim in claims])


def _client(provider: str, client_id: str) -> Any:
    """The token was issued to or for that client."""
    issued = [_claim(provider, claim, _text(client_id)) for claim in (*scopes.ISSUED_TO, scopes.ISSUED_FOR)]
    return _any([*issued, _claim(provider, scopes.ISSUED_FOR, {"list_match": {"one_of": _text(client_id)}})])


def _text(value: str) -> dict[str, Any]:
    return {"string_match": {"exact": value}}


def _claim(provider: str, claim: str, value: dict[str, Any]) -> Any:
    """A claim matches (envoy.type.matcher.v3.ValueMatcher in JSON form)."""
    where = network_inputs_pb2.DynamicMetadataInput(filter=_CLAIMS)
    where.path.add().key = provider
    where.path.add().key = claim
    how = json_format.ParseDict({"value": value}, metadata_pb2.Metadata())
    return cel.matched(_Predicate(), where, how)


def _names_agent(provider: str, claim: str, header: str) -> Any:
    """A claim has the scope that stands in a header."""
    return cel.predicate(cel.is_in(cel.header(header), cel.metadata(_CLAIMS, provider, claim)))


def _any(predicates: list[Any]) -> Any:
    if len(predicates) == 1:
        return predicates[0]
    return _Predicate(or_matcher=_Predicate.PredicateList(predicate=predicates))


def _both(*predicates: Any) -> Any:
    return _Predicate(and_matcher=_Predicate.PredicateList(predicate=predicates))
