"""`agent login`."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from agentruntime import errors
from agentruntime._proto.uapi.v1 import access_pb2, access_pb2_grpc
from agentruntime.cli import connection, output
from agentruntime.client import handshake, target
from agentruntime.client.sync import Client
from agentruntime.config import RuntimeConfig
from agentruntime.home import Home
from agentruntime.oauth2 import grants
from agentruntime.oauth2.discovery import discover
from agentruntime.oauth2.logins import Login, LoginFile

_ASKED_WITHIN_S = 10.0


def command(
    *,
    provider: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="One that the platform knows; the only one if it knows but one."),
    ] = None,
    issuer: Annotated[
        str | None, typer.Option(metavar="URL", help="Or the provider itself, with --client-id.")
    ] = None,
    client_id: Annotated[
        str | None,
        typer.Option(metavar="ID", help="The client to log in as; with --issuer, or instead of the usual."),
    ] = None,
    device: Annotated[
        bool, typer.Option("--device", help="As yourself, by a code to confirm in a browser anywhere; the default.")
    ] = False,
    client_credentials: Annotated[
        bool, typer.Option("--client-credentials", help="As the client itself, by its secret; with --issuer.")
    ] = False,
    client_secret_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the client's secret is, now and later.")
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(metavar="SCOPE", help="What to ask for, like uapi.call:my-agent; may be repeated."),
    ] = None,
    resource: Annotated[
        str | None, typer.Option(metavar="URI", help="Whom the token is for, where the provider wants to be told.")
    ] = None,
    audience: Annotated[
        str | None, typer.Option(metavar="NAME", help="The same, for providers that call it that.")
    ] = None,
    issuer_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Whose certificates are trusted at the provider, in PEM.")
    ] = None,
    format_: output.Output = None,
) -> None:
    """Log in at an identity provider, for a platform elsewhere.

    From then on the commands, and clients in Python, bring that login's token to the endpoint that `--endpoint` or
    UAPI_ENDPOINT names, unless they are given another credential.
    """
    _check_grant(issuer, client_secret_file, device=device, client_credentials=client_credentials)
    _check_provider(issuer, provider, client_id)
    config = connection.config()
    file = login_file(config)
    hint = access_pb2.IdentityProvider(issuer=issuer or "") if issuer else _asked(config, provider)
    client = grants.OAuthClient(
        client_id or hint.login.client_id,
        scope=" ".join(scope or hint.login.scopes),
        resource=resource or hint.login.resource,
        audience=audience or hint.login.audience,
        ca_file=str(issuer_ca.absolute()) if issuer_ca else "",
    )
    if not client.client_id:
        raise errors.InvalidArgument(
            f"the platform does not say which client logs in at {hint.issuer}; use --client-id"
        )
    secret_file = client_secret_file.absolute() if client_secret_file else None
    login = _logged_in(file.endpoint, hint.issuer, client, secret_file)
    file.keep(login)
    _show(login, as_json=output.wants_json(format_))


def _check_grant(issuer: str | None, secret_file: Path | None, *, device: bool, client_credentials: bool) -> None:
    """Raises InvalidArgument if the flags do not say who logs in, and how."""
    if device and client_credentials:
        raise errors.InvalidArgument("--device and --client-credentials exclude each other; choose one")
    if client_credentials != (secret_file is not None):
        raise errors.InvalidArgument("--client-credentials and --client-secret-file belong together; give both")
    if secret_file is not None and issuer is None:
        raise errors.InvalidArgument(
            "a client's secret goes to a provider that you name, not to one that the platform does; add --issuer"
        )


def _check_provider(issuer: str | None, provider: str | None, client_id: str | None) -> None:
    """Raises InvalidArgument if the flags do not say where."""
    if issuer is not None and provider is not None:
        raise errors.InvalidArgument("--provider and --issuer exclude each other; choose one")
    if issuer is not None and client_id is None:
        raise errors.InvalidArgument("--issuer needs --client-id, the client that the provider knows")


def login_file(config: RuntimeConfig) -> LoginFile:
    """Where the login to the platform is kept that is meant.

    Raises:
        InvalidArgument: that is this machine's own, which needs none; or what would be said there is said in clear.
    """
    endpoint = config.uapi.endpoint
    # A token, so that an endpoint that may not have one is refused now.
    found = target.resolve(endpoint, "any", config=config)
    if endpoint is None or found.address.startswith("unix:"):
        raise errors.InvalidArgument(
            "the platform of this user on this machine needs no login; name another by --endpoint or UAPI_ENDPOINT"
        )
    return LoginFile(Home.default().logins, target.written(found.address, found.secure))


def _asked(config: RuntimeConfig, name: str | None) -> access_pb2.IdentityProvider:
    """What the platform says of a provider."""
    uapi = config.uapi
    with Client(uapi.endpoint, "", _ASKED_WITHIN_S, ca=uapi.tls_ca, cert=uapi.tls_cert, key=uapi.tls_key) as client:
        # Before gRPC tries, which would go on trying and write of each time.
        if client.target.secure and (failure := handshake.tls_failure(client.target)):
            raise failure
        stub = client.stub(access_pb2_grpc.AccessServiceStub, agent="")
        listed = stub.ListIdentityProviders(access_pb2.ListIdentityProvidersRequest()).providers
    names = ", ".join(provider.name for provider in listed)
    if name is None and len(listed) == 1:
        return listed[0]
    if name is None:
        known = f"it knows {names}" if names else "it knows none"
        raise errors.InvalidArgument(f"name one of the platform's identity providers by --provider; {known}")
    found = next((provider for provider in listed if provider.name == name), None)
    if found is None:
        raise errors.NotFound(f"the platform has no identity provider '{name}'; it knows {names or 'none'}")
    return found


def _logged_in(endpoint: str, issuer: str, client: grants.OAuthClient, secret_file: Path | None) -> Login:
    at = discover(issuer, ca_file=client.ca_file)
    if secret_file:
        token = grants.by_client_credentials(at, grants.with_secret(client, secret_file), time.time())
    else:
        code = grants.device_code(at, client)
        output.note(f"open {code.verification_uri} and enter {code.user_code}")
        if code.complete_uri:
            output.note(f"or open {code.complete_uri}")
        with output.progress("waiting until you have confirmed it", quiet=True):
            token = grants.by_device_code(at, client, code)
    return Login(
        endpoint,
        issuer,
        client.client_id,
        **asdict(token),
        secret_file=str(secret_file or ""),
        scope=client.scope,
        resource=client.resource,
        audience=client.audience,
        ca_file=client.ca_file,
    )


def _show(login: Login, *, as_json: bool) -> None:
    renewed = bool(login.secret_file or login.refresh_token)
    if as_json:
        shown = {"endpoint": login.endpoint, "issuer": login.issuer, "client_id": login.client_id}
        output.print_json({**shown, "expires_at": login.expires_at, "renewed": renewed})
        return
    print(f"Logged in to {login.endpoint} by {login.issuer}.")
    if not renewed:
        minutes = max(0, round((login.expires_at - time.time()) / 60))
        output.note(
            f"it ends in {minutes} minutes: the provider gave no refresh token; --scope offline_access may get one"
        )
