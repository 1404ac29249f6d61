"""The platform as a command sees it: where it is, whether it runs, and how to start it."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from agentruntime import errors, supervisor
from agentruntime._proto.uapi.v1 import agent_gateway_pb2 as gateway_pb2
from agentruntime.cli import connection
from agentruntime.client import handshake
from agentruntime.client.sync import Client
from agentruntime.config import RuntimeConfig
from agentruntime.home import Home
from agentruntime.listening import Listen

# What goes with a certificate of the platform's, where one is given.
Key = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Its private key, unless it is in the same file or beside it.")
]
CallersCa = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Whose certificates are taken of callers who show one.")
]
_START_TIMEOUT_S = 70.0
_POLL_S = 0.05
_STATUS_TIMEOUT_S = 2.0
_CONNECTED_WITHIN_S = 3.0


@contextmanager
def connect(config: RuntimeConfig | None = None) -> Iterator[Client]:
    """A client of the platform; a platform that cannot be reached is said with the command that starts one.

    Raises:
        Unavailable: nothing answers there.
    """
    config = config or connection.config()
    home = Home.default()
    if config.uapi.endpoint is None and not supervisor.is_running(home):
        raise errors.Unavailable("no platform runs on this machine; start it with `agent up`", reason="NO_PLATFORM")
    # Not whatever else may listen on the default port.
    uapi = config.uapi
    endpoint = uapi.endpoint or f"unix:{home.gateway_socket}"
    with Client(
        endpoint, uapi.auth_token, uapi.timeout_s, ca=uapi.tls_ca, cert=uapi.tls_cert, key=uapi.tls_key
    ) as client:
        # Before gRPC tries, which would go on trying and write of each time.
        if client.target.secure and (failure := handshake.tls_failure(client.target)):
            raise failure
        try:
            # A part of the platform that died is back within a second or two; who waits longer wants to know why.
            client.await_connection(_CONNECTED_WITHIN_S)
        except errors.Unavailable as error:
            if error.reason != "NOT_CONNECTED":
                raise
            where = config.uapi.endpoint or f"the socket {home.gateway_socket}"
            raise errors.Unavailable(
                f"nothing answers at {where}; `agent status` says what runs", reason="NO_ANSWER"
            ) from None
        yield client


def is_local(config: RuntimeConfig) -> bool:
    """Whether commands mean the platform of this runtime directory, and not an endpoint that someone named."""
    return config.uapi.endpoint is None


def whole(path: Path | None) -> str | None:
    """A file's path as the platform, which works elsewhere, can use it."""
    return str(path.absolute()) if path else None


def start(home: Home, listen: Listen) -> bool:
    """Starts the platform and waits until it answers; False if it ran already.

    Raises:
        FailedPrecondition: it cannot start here; says why.
        DeadlineExceeded: it does not answer in time.
    """
    try:
        home.create()
    except OSError as error:
        raise errors.FailedPrecondition(
            f"the runtime directory {home.root} cannot be made ({error.strerror}); name another by UAPI_HOME"
        ) from None
    started = not supervisor.is_running(home)
    if started:
        _spawn(home, listen)
    _await_answer(home)
    return started


def start_as_asked(home: Home, listen: Listen) -> bool:
    """As `start`, but a platform that runs already must serve TLS, and let in whom it was asked to.

    Raises:
        FailedPrecondition: it does not; or as for `start`.
        DeadlineExceeded: as for `start`.
    """
    if start(home, listen):
        return True
    runs = _announced(home)
    served = served_tls(home) or {"cert": "", "key": "", "ca": ""}
    how = _up(listen)
    if listen.tls and not served["cert"]:
        raise errors.FailedPrecondition(
            f"the platform runs already, and without TLS; end it with `agent down`, then start it with `{how}`",
            reason="WITHOUT_TLS",
        )
    for path, used in (
        (listen.tls_cert, served["cert"]),
        (listen.tls_key, served["key"]),
        (listen.tls_ca, served["ca"]),
    ):
        if path and path != used:
            raise errors.FailedPrecondition(
                f"the platform runs already, and not with {path}; end it with `agent down`, then start it with "
                f"`{how}`",
                reason="OTHER_CERTIFICATE",
            )
    if listen.tls_require_client_cert and not runs.get("require_client_cert"):
        raise errors.FailedPrecondition(
            "the platform runs already, and lets callers in without a certificate; end it with `agent down`, then "
            f"start it with `{how}`",
            reason="OTHER_CALLERS",
        )
    if listen.anonymous and listen.anonymous != runs.get("anonymous"):
        raise errors.FailedPrecondition(
            f"the platform runs already, and not with --anonymous {listen.anonymous}; end it with `agent down`, then "
            f"start it with `{how}`",
            reason="OTHER_CALLERS",
        )
    return False


def _up(listen: Listen) -> str:
    """The command that starts a platform so."""
    given = (
        ("--cert", listen.tls_cert),
        ("--key", listen.tls_key),
        ("--ca", listen.tls_ca),
        ("--anonymous", listen.anonymous),
    )
    flags = [*(["--tls"] if listen.tls else []), *(f"{flag} {value}" for flag, value in given if value)]
    return " ".join(["agent up", *flags, *(["--require-client-cert"] if listen.tls_require_client_cert else [])])


def served_tls(home: Home) -> dict[str, str]:
    """The files that the gateway serves TLS with; none if it does not."""
    return dict(_announced(home).get("tls") or {})


def _announced(home: Home) -> dict[str, Any]:
    """What the gateway says of itself; nothing if it says nothing."""
    try:
        return dict(json.loads(home.gateway_file.read_text()))
    except (OSError, ValueError):
        return {}


def _spawn(home: Home, listen: Listen) -> None:
    reader, writer = os.pipe()
    argv = [sys.executable, "-m", "agentruntime.supervisor", *listen.argv(), "--report-fd", str(writer)]
    with (home.logs / "supervisor.log").open("ab") as log:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[writer],
            start_new_session=True,
            env={**os.environ, "UAPI_HOME": str(home.root)},
        )
    os.close(writer)
    with os.fdopen(reader) as report:
        if not select.select([report], [], [], _START_TIMEOUT_S)[0]:
            process.terminate()
            raise errors.DeadlineExceeded(f"the platform did not start in time; its logs are in {home.logs}")
        line = report.readline()
    event = json.loads(line) if line else {}
    if event.get("event") == "up":
        return
    # Another `agent up` may have been first; then its platform is ours too.
    if not event and supervisor.is_running(home):
        return
    why = event.get("error") or "the supervisor ended at once"
    raise errors.FailedPrecondition(f"{why}; logs are in {home.logs}", reason="START_FAILED")


def _await_answer(home: Home) -> None:
    """Until the gateway and, through it, the pool have answered."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    with Client(f"unix:{home.gateway_socket}", timeout_s=_STATUS_TIMEOUT_S) as client:
        while True:
            try:
                status = client.gateway.GetStatus(gateway_pb2.GetStatusRequest(), wait_for_ready=False)
                if {"gateway", "pool"} <= {process.name for process in status.processes}:
                    return
            except (errors.Unavailable, errors.DeadlineExceeded, errors.NotFound) as error:
                last: errors.AgentError | None = error
            else:
                last = None
            if time.monotonic() > deadline:
                why = last.message if last else "the pool has not joined"
                raise errors.DeadlineExceeded(f"the platform does not answer: {why}; its logs are in {home.logs}")
            if not supervisor.is_running(home):
                raise errors.FailedPrecondition(f"the platform ended while it started; its logs are in {home.logs}")
            time.sleep(_POLL_S)
