"""What names look like: agents, workers and image references."""

import re
from dataclasses import dataclass

from agentruntime.errors import InvalidArgument

# A part of a repository's name, as OCI's distribution spec has it.
_PATH_PART = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?")
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
    if agent != ImageReference.parse(image).agent:
        command += f" --name {agent}"
    return command


@dataclass(frozen=True)
class ImageReference:
    """A name with a tag, or with a digest that pins it.

    The name may be long, like "localhost:5000/team/my-agent": a registry's host, a path there, and last the agent.
    """

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
        path, slash, last = name.rpartition("/")
        last, colon, tag = last.partition(":")
        _check_path(text, path)
        if slash and not path:
            raise InvalidArgument(f"'{text}' begins with a slash; write host/path/name:tag")
        check_agent_name(last)
        if at and (colon or not _DIGEST.fullmatch(digest)):
            raise InvalidArgument(f"'{text}' does not pin an image; write name@sha256: and 64 hex digits")
        if colon and not _TAG.fullmatch(tag):
            raise InvalidArgument(f"'{tag}' is not a tag; use letters, digits, '_', '.' and '-'")
        return cls(path + slash + last, tag or DEFAULT_TAG, digest)

    @property
    def agent(self) -> str:
        """The last part of the name: what an agent of this image is called by default."""
        return self.name.rpartition("/")[2]

    @property
    def registry(self) -> str:
        """Host and port of the registry that the name begins with, or ""."""
        first, slash, _ = self.name.partition("/")
        return first if slash and _is_host(first) else ""

    @property
    def repository(self) -> str:
        """What the image is called within its registry."""
        return self.name.removeprefix(self.registry + "/")

    def __str__(self) -> str:
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"


def _is_host(part: str) -> bool:
    """As Docker tells a registry from the first part of a path."""
    return part == "localhost" or "." in part or ":" in part


def _check_path(text: str, path: str) -> None:
    """Raises InvalidArgument if what stands before an image's own name is no host and path."""
    for number, part in enumerate(path.split("/") if path else []):
        form = _HOST if number == 0 and _is_host(part) else _PATH_PART
        if not form.fullmatch(part):
            raise InvalidArgument(f"'{part}' in '{text}' is no host or part of a name; write host:port/path/name:tag")
