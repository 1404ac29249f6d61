"""What names look like: agents, workers and image references."""

import re
from dataclasses import dataclass

from agentruntime.errors import InvalidArgument

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")  # as OCI's distribution spec has it
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
DEFAULT_TAG = "latest"


def check_agent_name(name: str) -> str:
    """The name, if it is a DNS label (RFC 1123).

    Raises:
        InvalidArgument: it is not.
    """
    if not _LABEL.fullmatch(name):
        raise InvalidArgument(
            f"'{name}' is not an agent name; use at most 63 lower case letters, digits and hyphens, "
            "neither first nor last a hyphen",
            reason="INVALID_NAME",
        )
    return name


def worker_id(agent: str, number: int) -> str:
    """ "my-agent-01" of ("my-agent", 1)."""
    return f"{agent}-{number:02d}"


def run_command(image: str, agent: str) -> str:
    """The command line that runs an agent of that name, for messages that say how."""
    command = f"agent run {image}"
    if agent != re.split("[:@]", image, maxsplit=1)[0]:
        command += f" --name {agent}"
    return command


@dataclass(frozen=True)
class ImageReference:
    """A name with a tag, or with a digest that pins it."""

    name: str
    tag: str = DEFAULT_TAG
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> "ImageReference":
        """Reads "name", "name:tag" or "name@sha256:…".

        Raises:
            InvalidArgument: the text is none of these.
        """
        name, at, digest = text.partition("@")
        name, colon, tag = name.partition(":")
        check_agent_name(name)
        if at and (colon or not _DIGEST.fullmatch(digest)):
            raise InvalidArgument(f"'{text}' does not pin an image; write name@sha256: and 64 hex digits")
        if colon and not _TAG.fullmatch(tag):
            raise InvalidArgument(f"'{tag}' is not a tag; use letters, digits, '_', '.' and '-'")
        return cls(name, tag or DEFAULT_TAG, digest)

    def __str__(self) -> str:
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"
