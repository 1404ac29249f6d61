"""The secrets of an agent, as its author reads them: `secrets.text("openai")`.

A secret is a file, `/run/secrets/openai`, in memory that only this worker sees. It is there before the agent's
`start()`, but not where the platform imports an agent once for all of its workers: read it in `start()` or later.
"""

import os
import re
from pathlib import Path

from agentruntime.errors import FailedPrecondition, InvalidArgument
from agentruntime.names import check_agent_name

DIRECTORY = Path("/run/secrets")
# Names another directory: for tests, and set by the platform where a worker cannot have a view of its own.
VARIABLE = "UAPI_SECRETS_DIR"
LONGEST_BYTES = 64 * 2**10
# Of a shorter one, too much of what an agent prints by chance would be taken for it.
LEAST_REDACTED_BYTES = 8
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9_-])?")


def directory() -> Path:
    """Where this worker's secrets are."""
    return Path(os.environ.get(VARIABLE) or DIRECTORY)


def read(name: str) -> bytes:
    """A secret as it was set.

    Raises:
        FailedPrecondition: this worker has no such secret.
        InvalidArgument: no secret can be called that.
    """
    try:
        return (directory() / check_file_name(name)).read_bytes()
    except FileNotFoundError:
        raise FailedPrecondition(
            f"this worker has no secret '{name}'; name it in agent.yaml (permissions: {{secrets: [{name}]}}), set it "
            f"with `agent secrets set {name} --agents …`, and read it in start() or later, not at import",
            reason="NO_SECRET",
        ) from None


def text(name: str) -> str:
    """A secret that is text, in UTF-8, without white space at its ends. Raises as `read`."""
    return read(name).decode().strip()


def check_file_name(name: str) -> str:
    """The name, if a secret's file can have it.

    Raises:
        InvalidArgument: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"{name!r} is not the name of a secret; use at most 63 letters, digits, '.', '_' and '-', and begin with "
            "a letter or digit",
            reason="INVALID_NAME",
        )
    return name


def check_wanted(name: str) -> str:
    """The name, if an agent may ask for it: that of a secret's file, or "*" for all that are set for it.

    Raises:
        InvalidArgument: it may not.
    """
    if "/" in name:
        raise InvalidArgument(
            f"{name!r} is not the name of a secret as an agent asks for it; name it without the agent: "
            f"{name.rpartition('/')[2]}",
            reason="INVALID_NAME",
        )
    return name if name == "*" else check_file_name(name)


def split(name: str) -> tuple[str, str]:
    """("my-agent", "openai") of "my-agent/openai", which is of that agent alone; ("", "openai") of "openai".

    Raises:
        InvalidArgument: it is neither.
    """
    agent, slash, file_name = name.rpartition("/")
    if slash:
        check_agent_name(agent)
    return agent, check_file_name(file_name)
