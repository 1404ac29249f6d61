"""The options before the verb: how results are printed, which platform is meant, and how it is reached."""

from pathlib import Path
from typing import Annotated, Any

import typer

from agentruntime.cli import output
from agentruntime.config import RuntimeConfig

_PANEL = "Which platform, and how it is reached"
# By the setting's path: the option as it is written, and its value.
_flags: dict[str, tuple[str, Any]] = {}


def options(
    format_: output.Output = None,
    *,
    endpoint: Annotated[
        str | None,
        typer.Option(metavar="ENDPOINT", help="host:port, https://host:port or unix:/path.", rich_help_panel=_PANEL),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Or UAPI_AUTH_TOKEN, which `ps` does not show.", rich_help_panel=_PANEL),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Whose certificates are trusted, in PEM.", rich_help_panel=_PANEL),
    ] = None,
    cert: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Your own certificate, where one is asked for.", rich_help_panel=_PANEL),
    ] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its private key.", rich_help_panel=_PANEL)] = None,
) -> None:
    """Takes in the options that stand before the verb."""
    output.set_default(format_)
    given = {
        "uapi.endpoint": ("--endpoint", endpoint),
        "uapi.auth_token": ("--api-key", api_key),
        "uapi.tls_ca": ("--ca", ca and str(ca)),
        "uapi.tls_cert": ("--cert", cert and str(cert)),
        "uapi.tls_key": ("--key", key and str(key)),
    }
    # One process runs one command line, but the tests'.
    _flags.clear()
    _flags.update({path: flag for path, flag in given.items() if flag[1] is not None})


def flags() -> dict[str, tuple[str, Any]]:
    """The options given, as `RuntimeConfig.load` takes flags."""
    return dict(_flags)


def config(api_key: str | None = None) -> RuntimeConfig:
    """The environment, and over it the options given; `api_key` is a verb's own option.

    Raises:
        InvalidArgument: one of them cannot be read.
    """
    own = {} if api_key is None else {"uapi.auth_token": ("--api-key", api_key)}
    return RuntimeConfig.from_env(flags={**_flags, **own})
