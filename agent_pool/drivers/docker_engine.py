"""The container engine: found as `docker` finds it, asked in threads, and its errors in the platform's words.

Nothing of it is imported or asked before somebody wants a container or wants to know: a pool without one starts as if
there were no containers.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from agentruntime import errors

if TYPE_CHECKING:
    import docker

Answer = TypeVar("Answer")
# Docker's own (docs.docker.com/reference/cli/dockerd, "Daemon socket option").
_DEFAULT_HOST = "unix:///var/run/docker.sock"
# A local socket connects at once or not at all, and whoever asks may be waiting for a native start.
_PROBE_TIMEOUT_S = 0.5
_HELLO_TIMEOUT_S = 5.0
# Creating a container takes a fraction of a second, and several on a machine that is out of breath.
_TIMEOUT_S = 120
_NATIVE = "or run it with --native"


class Engine:
    """That of this machine, if there is one.

    Args:
        host: as DOCKER_HOST has it; "" for the engine's usual socket.
    """

    def __init__(self, host: str) -> None:
        self._host = host or _DEFAULT_HOST
        self._client: docker.DockerClient | None = None
        self._connecting = asyncio.Lock()
        # As the engine tells about itself.
        self.info: Mapping[str, Any] = {}

    async def connect(self) -> "docker.DockerClient":
        """A client of it.

        Raises:
            FailedPrecondition: there is no engine that could run agents; says why, and what would help.
        """
        async with self._connecting:
            # Each time: an engine comes and goes.
            await asyncio.to_thread(_probe, self._host)
            if self._client is None:
                client, self.info = await asyncio.to_thread(_open, self._host)
                if problem := unsuitable(self.info, os.uname().release):
                    client.close()
                    raise errors.FailedPrecondition(f"the container engine at {self._host} {problem}")
                self._client = client
            return self._client

    async def absent(self) -> str:
        """Why no engine can run agents here, or ""."""
        try:
            await self.connect()
        except errors.FailedPrecondition as error:
            return error.message
        return ""

    async def ask(self, call: Callable[["docker.DockerClient"], Answer]) -> Answer:
        """What the engine answers; the call goes on if the caller is cancelled.

        Raises:
            NotFound: there is no such thing.
            FailedPrecondition: it refuses, or there is no engine.
            Unavailable: it does not answer.
        """
        client = await self.connect()
        return await asyncio.to_thread(_translated, call, client)

    async def close(self) -> None:
        if self._client is not None:
            await asyncio.to_thread(self._client.close)
            self._client = None


def unsuitable(info: Mapping[str, Any], release: str) -> str:
    """Why an engine cannot run agents, from what it tells about itself and our own kernel's release; or ""."""
    options = " ".join(info.get("SecurityOptions") or ())
    if info.get("OSType") != "linux" or info.get("KernelVersion") != release:
        return f"runs on another machine, and must have the pool's files; set DOCKER_HOST to one here, {_NATIVE}"
    if "name=rootless" in options or "name=userns" in options:
        return f"gives containers other users than the pool's; use one without user namespaces, {_NATIVE}"
    return ""


def refusal(explanation: str) -> errors.AgentError:
    """What an engine's own words mean for whoever wanted a container."""
    if "could not select device driver" in explanation or "nvidia" in explanation.lower():
        return errors.FailedPrecondition(
            f"the container engine cannot give GPUs ({explanation}); install the NVIDIA Container Toolkit and "
            f"restart the engine, {_NATIVE}"
        )
    if "logging driver" in explanation:
        return errors.FailedPrecondition(
            f"the container engine could not start to log ({explanation}); see to the json-file log driver"
        )
    if "no space left" in explanation:
        return errors.DiskFull(f"the container engine's disk is full; `docker system prune` makes room, {_NATIVE}")
    return errors.FailedPrecondition(f"the container engine refused: {explanation}")


def _probe(host: str) -> None:
    """Raises FailedPrecondition if nothing listens there, or it is not on this machine."""
    if not host.startswith("unix://"):
        raise errors.FailedPrecondition(
            f"DOCKER_HOST names a container engine on another machine ({host}), and it must have the pool's files; "
            f"set it to a socket here, like {_DEFAULT_HOST}, {_NATIVE}"
        )
    path = Path(host.removeprefix("unix://"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_PROBE_TIMEOUT_S)
        try:
            connection.connect(str(path))
        except PermissionError:
            raise errors.FailedPrecondition(
                f"this user may not use the container engine at {path}; add it to the group docker, {_NATIVE}"
            ) from None
        except OSError as error:
            raise errors.FailedPrecondition(
                f"no container engine answers at {path} ({error.strerror or error}); start one, name its socket by "
                f"DOCKER_HOST, {_NATIVE}"
            ) from None


def _open(host: str) -> tuple["docker.DockerClient", Mapping[str, Any]]:
    """Blocks for a tenth of a second, most of it for the import."""
    import docker  # noqa: PLC0415 — a pool that runs no container must not pay for it
    import docker.errors  # noqa: PLC0415 — as above
    import requests.exceptions  # noqa: PLC0415 — as above

    try:
        client = docker.DockerClient(base_url=host, timeout=_HELLO_TIMEOUT_S)  # type: ignore[arg-type]  # of requests
        info = client.info()
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        raise errors.FailedPrecondition(
            f"the container engine at {host} does not answer ({error}); restart it, {_NATIVE}"
        ) from None
    client.api.timeout = _TIMEOUT_S
    return client, info


def _translated(call: Callable[["docker.DockerClient"], Answer], client: "docker.DockerClient") -> Answer:
    import docker.errors  # noqa: PLC0415 — it is imported by now
    import requests.exceptions  # noqa: PLC0415 — as above

    try:
        return call(client)
    except docker.errors.NotFound as error:
        raise errors.NotFound(error.explanation or str(error)) from None
    except docker.errors.DockerException as error:
        raise refusal(str(getattr(error, "explanation", None) or error)) from None
    except requests.exceptions.RequestException as error:
        raise errors.Unavailable(f"the container engine does not answer ({error}); try again, {_NATIVE}") from None
