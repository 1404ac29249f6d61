"""The filters that find out whom a call comes from and whether it may: those that stay, and those that change.

In this order, on every listener that callers reach:

    uapi.agent      the agent that the call is for, where a route knows it better than the caller's headers
    uapi.keys       API keys and tokens of identity providers: their signatures, and what they say
    uapi.tokens     x-uapi-principal, from a token of an identity provider
    uapi.certificate  whose certificate the caller has shown, on listeners that verify some
    uapi.principal  x-uapi-principal of whoever has none by then
    uapi.access     who may call what

What changes comes by ECDS (https://www.envoyproxy.io/docs/envoy/latest/configuration/overview/extension), which
takes effect for the next call and cuts none.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from agentruntime.api_keys import PREFIX
from envoy.config.core.v3 import extension_pb2
from envoy.extensions.filters.http.jwt_authn.v3 import config_pb2 as jwt_pb2
from google.protobuf import any_pb2, json_format

from uapi_gateway import descriptors
from uapi_gateway.access import certified, headers, keys, policy
from uapi_gateway.access.keys import Key
from uapi_gateway.xds import resources
from uapi_gateway.xds.resources import Resource, typed

AGENT, OWNER, KEYS, TOKENS = "uapi.agent", "uapi.owner", "uapi.keys", "uapi.tokens"
CERTIFICATE, WHO, ACCESS = "uapi.certificate", "uapi.principal", "uapi.access"
# Of the HTTP pages.
HTTP_ACCESS = "uapi.http-access"
# Tokens that were checked and need not be again, in each of Envoy's threads.
CHECKED_TOKENS = 4096
# Of a worker's name, after its agent's (names.worker_id).
WORKER_SUFFIX = "-[0-9]{2,}"
_MUTATION = "envoy.extensions.filters.http.header_mutation.v3."
_SCHEMES = ("Bearer", "bearer")
# Clients of the OpenAI API send some key always, "sk-none" where they have none: what cannot be a token, for want of
# a dot, is no credential there.
_OPENAI, _NO_TOKEN = "/v1/", "[Bb]earer [^.]*"


def early() -> list[dict[str, Any]]:
    """What every caller's headers lose before anything looks at them, and what they get."""
    return [
        {"remove": headers.PRINCIPAL},
        {"remove": headers.CONVERSATION},
        {"remove": headers.FOR},
        {"remove_on_match": {"key_matcher": {"prefix": headers.PREFIX}}},
        for_whom(),
    ]


def for_whom() -> dict[str, Any]:
    """The first guess of the agent that a call is for."""
    return set_header(headers.FOR, "%REQ(x-uapi-agent)%")


def certificate() -> list[dict[str, Any]]:
    """Early mutations of a listener that verifies callers' certificates: whose the caller's is, as the header has it.

    The prefix comes first of all: an authority may sign for a name that would be another principal's.
    """
    prefixed = f"{policy.CERTIFICATE_PREFIX}%REQ({headers.CERTIFICATE})%"
    return [
        set_header(headers.CERTIFICATE, "%DOWNSTREAM_PEER_URI_SAN%"),
        {
            "append": {
                "header": {"key": headers.CERTIFICATE, "value": prefixed},
                "append_action": "OVERWRITE_IF_EXISTS",
            }
        },
    ]


def _certified() -> dict[str, Any]:
    """A filter that knows an agent by its certificate."""
    rule = {
        "header": headers.CERTIFICATE,
        "on_header_present": {
            "metadata_namespace": "uapi",
            "key": "certificate",
            "regex_value_rewrite": {
                "pattern": {
                    "google_re2": {},
                    "regex": f"^{policy.CERTIFICATE_PREFIX}{certified.AGENT_URI}({certified.AGENT_NAME})$",
                },
                "substitution": f"{policy.AGENT_PREFIX}\\1",
            },
        },
    }
    config = typed("envoy.extensions.filters.http.header_to_metadata.v3.Config", request_rules=[rule])
    return {"name": CERTIFICATE, "typed_config": config}


def chain(nobody: str, access: str = ACCESS, *, certified: bool = False) -> list[dict[str, Any]]:
    """The filters of a listener.

    Args:
        nobody: the principal of a caller that shows no credential.
        access: which rules are in force there.
        certified: callers may show a certificate, which is verified. Another credential counts for more.
    """
    by_certificate = [set_header(headers.PRINCIPAL, "%DYNAMIC_METADATA(uapi:certificate)%", absent=True)]
    found = [_first(headers.PRINCIPAL), _first(headers.KEY)]
    found += [*(by_certificate if certified else []), set_header(headers.PRINCIPAL, nobody, absent=True)]
    secure = "unix" if nobody == keys.LOCAL else "%DOWNSTREAM_TLS_VERSION%"
    found += [set_header(headers.SECURE, secure), _pair(), *([_own()] if certified else []), *conversation()]
    return [
        changing(KEYS, "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication"),
        changing(TOKENS, f"{_MUTATION}HeaderMutation"),
        *([_certified()] if certified else []),
        {"name": WHO, "typed_config": typed(_MUTATION + "HeaderMutation", mutations={"request_mutations": found})},
        rules(access),
    ]


def _first(name: str) -> dict[str, Any]:
    """A key that was sent in two headers is told twice, and would then be one that nothing is known of."""
    header = {"key": name, "value": f"%REQ({name})%"}
    return {"append": {"header": header, "append_action": "OVERWRITE_IF_EXISTS"}}


def _pair() -> dict[str, Any]:
    """The mutation that puts who calls and what beside each other, for rules that look both up."""
    return set_header(headers.PAIR, f"%REQ({headers.KEY})%@%REQ({headers.FOR})%")


def _own() -> dict[str, Any]:
    """The mutation that says which principal the agent that is called would be, where agents may call."""
    return set_header(headers.OWN, f"{policy.AGENT_PREFIX}%REQ({headers.FOR})%")


def inner_chain() -> list[dict[str, Any]]:
    """The same where the principal is known already, and only the agent may be another."""
    found = [_pair(), _own(), *conversation()]
    mutation = typed(_MUTATION + "HeaderMutation", mutations={"request_mutations": found})
    return [{"name": WHO, "typed_config": mutation}, rules()]


def conversation() -> list[dict[str, Any]]:
    """Mutations that say which conversation a call belongs to, once its principal is known.

    Two, for the principal alone is no conversation: the second one has nothing to overwrite without one.
    """
    named = "%REQ(x-uapi-conversation)%"
    both = {"header": {"key": headers.CONVERSATION, "value": f"%REQ({headers.PRINCIPAL})% {named}"}}
    return [
        set_header(headers.CONVERSATION, named),
        {"append": {**both, "append_action": "OVERWRITE_IF_EXISTS"}},
    ]


def target() -> list[dict[str, Any]]:
    """The filters that say which agent a call is for, by what its route says of that."""
    rule = {
        "header": "x-uapi-agent",
        "on_header_present": {
            "metadata_namespace": "uapi",
            "key": "owner",
            "regex_value_rewrite": {"pattern": {"google_re2": {}, "regex": f"{WORKER_SUFFIX}$"}, "substitution": ""},
        },
    }
    worker = typed("envoy.extensions.filters.http.header_to_metadata.v3.Config", request_rules=[rule])
    return [
        # Of calls to a worker by its name, whose routes turn it on.
        {"name": OWNER, "typed_config": worker, "disabled": True},
        # Of calls whose agent the route knows, likewise.
        {"name": AGENT, "typed_config": typed(_MUTATION + "HeaderMutation"), "disabled": True},
    ]


def rules(access: str = ACCESS) -> dict[str, Any]:
    """The filter that decides."""
    return changing(access, "envoy.extensions.filters.http.rbac.v3.RBAC")


def for_agent(agent: str) -> dict[str, Any]:
    """What a route says that knows the agent."""
    found = [set_header("x-uapi-agent", agent), set_header(headers.FOR, agent)]
    return {AGENT: typed(_MUTATION + "HeaderMutationPerRoute", mutations={"request_mutations": found})}


def for_worker() -> dict[str, Any]:
    """What a route says of calls that name a worker: they are for its agent."""
    found = [set_header(headers.FOR, "%DYNAMIC_METADATA(uapi:owner)%")]
    return {
        OWNER: typed("envoy.config.route.v3.FilterConfig", config=target()[0]["typed_config"]),
        AGENT: typed(_MUTATION + "HeaderMutationPerRoute", mutations={"request_mutations": found}),
    }


def changing(name: str, *kinds: str) -> dict[str, Any]:
    """A filter whose configuration comes by ECDS, of one of some kinds."""
    source = {"ads": {}, "resource_api_version": "V3"}
    return {
        "name": name,
        "config_discovery": {"config_source": source, "type_urls": [resources.PREFIX + kind for kind in kinds]},
    }


def set_header(name: str, value: str, *, absent: bool = False) -> dict[str, Any]:
    """A mutation; one whose value turns out empty sets nothing."""
    action = "ADD_IF_ABSENT" if absent else "OVERWRITE_IF_EXISTS_OR_ADD"
    return {"append": {"header": {"key": name, "value": value}, "append_action": action}}


def authentication(known: Iterable[Key], providers: Sequence[tuple[str, dict[str, Any]]] = ()) -> Resource:
    """The filter that checks keys, and tokens of identity providers.

    Args:
        known: the keys.
        providers: by name, each an envoy.extensions.filters.http.jwt_authn.v3.JwtProvider in protobuf's JSON form.
    """
    lean = {"keys": _keys_provider(), **dict(providers)}
    # Only the platform reads the claims, and a header of them costs a call dearly.
    told = {f"{name}told": {**config, "forward_payload_header": headers.CLAIMS} for name, config in providers}
    for_agent = {"prefix": "/", "headers": [{"name": "x-uapi-agent", "present_match": True}]}
    foreign = {"name": "authorization", "string_match": {"safe_regex": {"regex": _NO_TOKEN}}}
    platform = _any_of(["keys", *told])
    content = {
        "providers": {**lean, **told},
        "rules": [
            {"match": {"prefix": _OPENAI, "headers": [foreign]}, "requires": _any_of(["keys"])},
            # The gateway takes these, whatever agent they name.
            {"match": {"prefix": f"/{descriptors.A2A}/"}, "requires": platform},
            {"match": for_agent, "requires": _any_of(lean)},
            {"match": {"prefix": "/"}, "requires": platform},
        ],
    }
    message = json_format.ParseDict(content, jwt_pb2.JwtAuthentication())
    message.providers["keys"].local_jwks.inline_string = keys.key_set(known)
    return extension(KEYS, message)


def _any_of(providers: Iterable[str]) -> dict[str, Any]:
    """A good token of one of them, or none at all."""
    return {
        "requires_any": {"requirements": [*({"provider_name": name} for name in providers), {"allow_missing": {}}]}
    }


def _keys_provider() -> dict[str, Any]:
    return {
        "issuer": keys.ISSUER,
        "from_headers": [
            *({"name": "authorization", "value_prefix": f"{scheme} {PREFIX}"} for scheme in _SCHEMES),
            {"name": "x-api-key", "value_prefix": PREFIX},
        ],
        "claim_to_headers": [
            {"header_name": headers.PRINCIPAL, "claim_name": "sub"},
            {"header_name": headers.KEY, "claim_name": "jti"},
        ],
        "jwt_cache_config": {"jwt_cache_size": CHECKED_TOKENS},
        "clock_skew_seconds": 1,
    }


def extension(name: str, message: Any) -> Resource:
    """A filter's configuration as Envoy takes it by ECDS."""
    # Packed here: where a map stands inside an `Any`, only this keeps its order.
    packed = any_pb2.Any(
        type_url=resources.PREFIX + message.DESCRIPTOR.full_name, value=message.SerializeToString(deterministic=True)
    )
    return resources.wrap(
        resources.EXTENSION, name, extension_pb2.TypedExtensionConfig(name=name, typed_config=packed)
    )
