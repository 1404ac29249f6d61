"""`identity-providers.yaml`: whose tokens the gateway takes, and what their scopes mean."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import yaml
from agentruntime.errors import InvalidArgument
from agentruntime.oauth2.exchange import check_url
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from uapi_gateway.access import scopes

# Beyond this a file is no configuration of a few providers.
_LONGEST_FILE_BYTES = 2**18
_MOST_PROVIDERS = 16
# Of the principals of all providers' tokens.
OIDC_PREFIX = "oidc:"


def _ours(scope: str) -> str:
    if scopes.parse(scope) is None:
        raise ValueError(f"'{scope}' is none of uapi.call, uapi.operate (or with :AGENT) and uapi.administer")
    return scope


def _listed(given: Any) -> Any:
    return [given] if isinstance(given, str) else given


Url = Annotated[str, AfterValidator(check_url)]
# Envoy's formats take a claim by its name up to a colon.
_Claim = Annotated[str, Field(pattern=r"^[A-Za-z0-9_./-]{1,128}$")]
_Ours = Annotated[list[Annotated[str, AfterValidator(_ours)]], BeforeValidator(_listed)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LoginHint(_Section):
    """What `agent login --provider NAME` asks with. Told to whoever asks."""

    client_id: str = Field(min_length=1, max_length=256)
    scopes: tuple[str, ...] = ()
    # Whom the token is to be for: RFC 8707's parameter, or that of providers who call it otherwise.
    resource: str = ""
    audience: str = ""


class Provider(_Section):
    """One identity provider."""

    name: str = Field(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$")
    # Exactly as its tokens have it.
    issuer: Url
    # A token must be for one of these.
    audiences: tuple[str, ...] = Field(min_length=1, max_length=32)
    # "" for what the issuer's discovery says.
    jwks_uri: Url | None = None
    # Of PEM certificates; the system's authorities if there is none.
    ca_file: Path | None = None
    # Who the caller is: must be unique for good, and never given to another.
    subject_claim: _Claim = "sub"
    # Where scopes and roles are: strings separated by blanks, or lists.
    scope_claims: tuple[_Claim, ...] = Field(default=("scope", "scp", "roles"), min_length=1, max_length=8)
    # Of the provider's own scopes and roles to ours. If there are any, only those count.
    grants: dict[str, _Ours] = Field(default_factory=dict)
    login: LoginHint | None = None

    @property
    def principal_prefix(self) -> str:
        """Of the principals of its tokens; the subject follows."""
        return f"{OIDC_PREFIX}{self.name}:"

    @model_validator(mode="before")
    @classmethod
    def _one_audience(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("audiences"), str):
            return {**given, "audiences": [given["audiences"]]}
        return given


class _File(_Section):
    providers: tuple[Provider, ...] = Field(default=(), max_length=_MOST_PROVIDERS)

    @model_validator(mode="after")
    def _distinct(self) -> "_File":
        for what in ("name", "issuer"):
            values = [getattr(provider, what) for provider in self.providers]
            if twice := sorted({value for value in values if values.count(value) > 1}):
                raise ValueError(f"the {what} '{twice[0]}' stands twice")
        return self


def read(content: bytes, source: str) -> tuple[Provider, ...]:
    """The providers that a file names.

    Raises:
        InvalidArgument: it is not YAML, or a field is wrong; names all of them.
    """
    if len(content) > _LONGEST_FILE_BYTES:
        raise InvalidArgument(f"{source} is larger than 256 KiB", reason="INVALID_CONFIG")
    try:
        given = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidArgument(
            f"{source} is not YAML: {' '.join(str(error).split())}", reason="INVALID_CONFIG"
        ) from None
    try:
        return _File.model_validate({} if given is None else given).providers
    except ValidationError as error:
        problems = [_problem(item) for item in error.errors(include_url=False)]
        raise InvalidArgument(f"{source}: {'; '.join(problems)}", reason="INVALID_CONFIG") from None


def _problem(item: Any) -> str:
    where = _dotted(item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{where} is not a setting of an identity provider"
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{where}: {message[0].lower() + message[1:]}" if where else message


def _dotted(path: Iterable[str | int]) -> str:
    """`providers[0].issuer`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def identity(provider: Provider) -> str:
    """Of all that its keys depend on: those of one identity are not another's."""
    parts = (provider.name, provider.issuer, str(provider.jwks_uri or ""))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
