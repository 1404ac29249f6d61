"""What a container image is made of: the Dockerfile of an agent image, and the files that it copies.

Layers in the order in which they change: the base image, what every worker needs, what this agent needs, the
platform's code, the agent's. All in it has fixed times and owners, so the same agent gives the same layers.
"""

import hashlib
import importlib.metadata
import importlib.util
import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from agentruntime import errors
from agentruntime.manifest import AgentManifest

from agent_pool.images import build

# Says which agent image a container image is made of, by its digest.
AGENT_IMAGE_LABEL = "dev.agentruntime.agent-image"
# Says how: another recipe is another base, or another version of the platform.
RECIPE_LABEL = "dev.agentruntime.recipe"
# Where an agent's code and its requirements are, as in a bundle.
AGENT_DIRECTORY = "/agent"
PORT = 50051

# All that agent_worker and the SDK import, with all that these need; a test compares. In a container the same
# versions are installed that the pool has.
WORKER_PACKAGES = (
    "annotated-types",
    "googleapis-common-protos",
    "grpcio",
    "grpcio-health-checking",
    "grpcio-reflection",
    "protobuf",
    "pydantic",
    "pydantic-core",
    "pyyaml",
    "structlog",
    "typing-extensions",
    "typing-inspection",
)
# For workers that run with --debug, where the pool has it.
DEBUGGER = "debugpy"
# Of the platform's code, what no worker needs: the command line, and projects that are images of their own.
_LEFT_OUT = {
    "agentruntime": ("cli", "supervisor.py"),
    "agent_worker": ("builtin",),
}
_PLATFORM = "/opt/agentruntime"
_SCRIPT = Path(__file__).with_name("container_install.py")
# As Docker's reference grammar has it, without what a Dockerfile would take for more.
_BASE = re.compile(r"[\w][\w.:/@-]*", re.ASCII)
# nobody's, as a number: an engine can tell that it is not root.
_USER = "65534:65534"


@dataclass(frozen=True)
class Recipe:
    """How a container image is made of one agent image."""

    # Of the agent image.
    image_digest: str
    # Of the base's name and of all that goes in, but the agent.
    digest: str
    dockerfile: str
    agent: str
    base_image: str
    bundle: Path

    @property
    def labels(self) -> list[str]:
        """What finds an image made by it."""
        return [f"{AGENT_IMAGE_LABEL}={self.image_digest}", f"{RECIPE_LABEL}={self.digest}"]

    def write(self, stream: IO[bytes]) -> None:
        """Writes the build context, a tar. Blocks."""
        with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            _add_bytes(archive, "Dockerfile", self.dockerfile.encode())
            seen: set[PurePosixPath] = set()
            for name, content in _platform_files():
                _add_parents(archive, PurePosixPath(name), seen)
                _add_bytes(archive, name, content)
            app = f"agent{AGENT_DIRECTORY}/app"
            _add_parents(archive, PurePosixPath(app), seen)
            build.add_tree(archive, self.bundle / "app", app)


def recipe(digest: str, bundle: Path, base_image: str) -> Recipe:
    """How a container image is made.

    Args:
        digest: of the agent image.
        bundle: where it is unpacked.
        base_image: what it is made from.

    Raises:
        InvalidArgument: there can be no such base image.
        FailedPrecondition: a package is not installed here, so that its version cannot be known.
    """
    if not _BASE.fullmatch(base_image):
        raise errors.InvalidArgument(
            f"base_image '{base_image}' is not an image's name; write one like python:3.12-slim"
        )
    manifest = AgentManifest.load(bundle / "app")
    head = _head(base_image, manifest)
    mark = hashlib.sha256(head.encode())
    for name, content in _platform_files():
        mark.update(f"\n{name} {len(content)}\n".encode() + content)
    recipe_digest = f"sha256:{mark.hexdigest()}"
    dockerfile = head + _tail(digest, recipe_digest)
    return Recipe(digest, recipe_digest, dockerfile, manifest.name, base_image, bundle)


def _head(base_image: str, manifest: AgentManifest) -> str:
    debugger = [DEBUGGER] if importlib.util.find_spec(DEBUGGER) else []
    lines = [
        f"FROM {base_image}",
        "USER 0:0",
        f"ENV PYTHONPATH={_PLATFORM}/packages:{_PLATFORM}/code",
        "ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp",
        "# What every worker needs, as this pool has it. Copied over /, so that directories have fixed times, too.",
        "COPY installer/ /",
        _install(f"{_PLATFORM}/packages", "--no-deps", *_pinned([*WORKER_PACKAGES, *debugger])),
    ]
    if manifest.python.platform_packages:
        lines += [
            "# What this agent takes of the platform's own packages.",
            _install(f"{AGENT_DIRECTORY}/deps", "--no-deps", *_pinned(manifest.python.platform_packages)),
        ]
    if manifest.python.requirements:
        lines += [
            "# What this agent needs.",
            _install(f"{AGENT_DIRECTORY}/deps", "--", *manifest.python.requirements),
        ]
    lines += [
        "# The platform's code, as far as a worker needs it.",
        "COPY platform/ /",
        _install(f"{_PLATFORM}/code"),
        "# The agent's.",
        "COPY agent/ /",
    ]
    return "\n".join(lines) + "\n"


def _tail(digest: str, recipe_digest: str) -> str:
    # Labels last and at once: what is found by them is whole, whatever became of the names of an image.
    return f"""USER {_USER}
WORKDIR {AGENT_DIRECTORY}/app
EXPOSE {PORT}
ENTRYPOINT ["python", "-P", "-m", "agent_worker.container"]
LABEL {AGENT_IMAGE_LABEL}={digest} {RECIPE_LABEL}={recipe_digest}
"""


def _install(directory: str, *pip: str) -> str:
    # In JSON, no shell reads what an agent.yaml says.
    return "RUN " + json.dumps(["python", "-I", "-B", f"{_PLATFORM}/install.py", directory, *pip])


def _pinned(packages: list[str]) -> list[str]:
    pinned = []
    for package in packages:
        try:
            pinned.append(f"{package}=={importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            raise errors.FailedPrecondition(
                f"the platform has no package '{package}', which a container of this agent needs"
            ) from None
    return pinned


def _platform_files() -> Iterator[tuple[str, bytes]]:
    """What is copied beside the agent: name in the context, and content."""
    yield f"installer{_PLATFORM}/install.py", _SCRIPT.read_bytes()
    code = f"platform{_PLATFORM}/code"
    version = importlib.metadata.version("agentruntime")
    about = f"Metadata-Version: 2.1\nName: agentruntime\nVersion: {version}\n"
    yield f"{code}/agentruntime-{version}.dist-info/METADATA", about.encode()
    for package, left_out in _LEFT_OUT.items():
        # Found, not imported: the services meet only in protos.
        spec = importlib.util.find_spec(package)
        for root in (spec.submodule_search_locations or ()) if spec else ():
            for path in sorted(Path(root).rglob("*.py")):
                inner = path.relative_to(root)
                if inner.parts[0] not in left_out:
                    yield f"{code}/{package}/{inner.as_posix()}", path.read_bytes()


def _add_parents(archive: tarfile.TarFile, path: PurePosixPath, seen: set[PurePosixPath]) -> None:
    # An engine makes directories that are missing itself, with the time of day.
    for parent in reversed(path.parents[:-1]):
        if parent not in seen:
            seen.add(parent)
            member = tarfile.TarInfo(str(parent))
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member)


def _add_bytes(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    archive.addfile(member, io.BytesIO(content))
