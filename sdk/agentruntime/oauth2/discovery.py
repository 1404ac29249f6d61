"""Where an identity provider has its endpoints: OpenID Connect Discovery 1.0, whose fields are those of RFC 8414."""

from dataclasses import dataclass
from typing import Any

from agentruntime.errors import Unavailable
from agentruntime.oauth2.exchange import ask, check_url

_PATH = "/.well-known/openid-configuration"


@dataclass(frozen=True)
class Endpoints:
    """Of one provider; "" for what it does not have."""

    issuer: str
    jwks_uri: str = ""
    token: str = ""
    device_authorization: str = ""
    # How clients may show their secret at the token endpoint. RFC 8414's default.
    authentication_methods: tuple[str, ...] = ("client_secret_basic",)


def discover(issuer: str, *, ca_file: str = "") -> Endpoints:
    """Asks a provider for its endpoints. Blocks.

    Raises:
        InvalidArgument: the issuer is not an https URL.
        Unavailable: it does not answer, or with the document of another issuer.
    """
    url = issuer.rstrip("/") + _PATH
    answer = ask(url, ca_file=ca_file)
    if answer.status != 200:
        raise Unavailable(f"{url} answers HTTP {answer.status}", reason="PROVIDER_UNAVAILABLE")
    return endpoints(issuer, answer.content)


def endpoints(issuer: str, document: dict[str, Any]) -> Endpoints:
    """The endpoints out of a provider's document.

    Raises:
        Unavailable: it is that of another issuer, or names an endpoint that is not https.
    """
    # Else a provider could speak for another one (OpenID Connect Discovery 1.0, section 4.3).
    if document.get("issuer") != issuer:
        raise Unavailable(
            f"the issuer '{issuer}' calls itself '{document.get('issuer')}'; write it exactly so",
            reason="PROVIDER_UNAVAILABLE",
        )
    methods = document.get("token_endpoint_auth_methods_supported")
    return Endpoints(
        issuer,
        jwks_uri=_url(document, "jwks_uri"),
        token=_url(document, "token_endpoint"),
        device_authorization=_url(document, "device_authorization_endpoint"),
        authentication_methods=tuple(map(str, methods)) if isinstance(methods, list) else ("client_secret_basic",),
    )


def _url(document: dict[str, Any], field: str) -> str:
    value = document.get(field, "")
    try:
        return check_url(str(value)) if value else ""
    except ValueError as error:
        raise Unavailable(f"the provider's {field}: {error}", reason="PROVIDER_UNAVAILABLE") from None
