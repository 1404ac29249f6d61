"""Virtual environments that agents want to run in: whether workers can, and what to install if not."""

import asyncio
import importlib.metadata
import importlib.util
import json
import shlex
import sys
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

from agentruntime import errors

# What a worker's Python must be able to import, so a venv too.
_NEEDED = ("grpc", "google.protobuf", "grpc_health", "grpc_reflection", "agentruntime", "agent_worker", "structlog",
           "pydantic", "yaml")  # fmt: skip
_CHECK_TIMEOUT_S = 30.0


class Venvs:
    """Those that one pool was asked about.

    Args:
        environment: of the processes that look into them.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        # Virtual environments that were found to be complete, and when something was installed in them last.
        self._checked: dict[str, int] = {}

    async def check(self, venv: str, *, debug: bool = False) -> None:
        """Makes sure that workers can run in a virtual environment; "" is the platform's own Python.

        Args:
            venv: its path.
            debug: whether they must be able to let a debugger in.

        Raises:
            FailedPrecondition: they cannot; says what to install.
        """
        if venv:
            await self._check_complete(venv)
        if debug and not _has_debugger(venv):
            python = f"{venv}/bin/python" if venv else sys.executable
            raise errors.FailedPrecondition(
                f"debugging needs the package debugpy; install it: {python} -m pip install debugpy"
            )

    async def _check_complete(self, venv: str) -> None:
        changed_ns = _changed_ns(Path(venv))
        if self._checked.get(venv) == changed_ns:
            return
        python = Path(venv, "bin", "python")
        if not python.is_file():  # noqa: ASYNC240 — one stat of a local file
            raise errors.FailedPrecondition(f"{venv} is not a virtual environment: it has no bin/python")
        program = f"import importlib\nfor name in {_NEEDED!r}: importlib.import_module(name)"
        process = await asyncio.create_subprocess_exec(
            str(python), "-c", program, cwd="/", env=self._environment,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(_CHECK_TIMEOUT_S):
                _, said = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise errors.FailedPrecondition(f"{python} did not answer within {_CHECK_TIMEOUT_S:g}s") from None
        if process.returncode:
            last = (said.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
            raise errors.FailedPrecondition(
                f"{venv} lacks what a worker needs ({last}); install it: {venv}/bin/pip install {_own_source()}"
            )
        self._checked[venv] = changed_ns


def _has_debugger(venv: str) -> bool:
    if not venv:
        return importlib.util.find_spec("debugpy") is not None
    return any(Path(venv).glob("lib/python*/site-packages/debugpy/__init__.py"))


def _changed_ns(venv: Path) -> int:
    """When a package was last put in, or taken out, of a virtual environment; 0 if it has no place for them."""
    return max((place.stat().st_mtime_ns for place in venv.glob("lib/python*/site-packages")), default=0)


def _own_source() -> str:
    """What pip can install the platform from once more: where this one came from (PEP 610), else its version."""
    own = importlib.metadata.distribution("agentruntime")
    try:
        url = str(json.loads(own.read_text("direct_url.json") or "{}").get("url", ""))
    except ValueError:
        url = ""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "file":
        return shlex.quote(urllib.parse.unquote(parts.path))
    return url or f"agentruntime=={own.version}"
