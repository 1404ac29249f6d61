"""The images that come with the platform: ordinary projects in the installed package, packed on first need.

They are found without importing `agent_worker`: the services meet only in protos.
"""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

from agentruntime import files
from agentruntime.names import ImageReference

from agent_pool.images import build, project
from agent_pool.images.layout import ImageLayout

_OWNER = "agent_worker"
# Image name: directory below the package's `builtin`.
DIRECTORIES: Mapping[str, str] = {"echo": "echo", "mock-ai": "mock_ai", "text-generator": "text_generator"}


def projects() -> dict[str, Path]:
    """The project directory of each built-in image that is installed."""
    spec = importlib.util.find_spec(_OWNER)
    roots = list(spec.submodule_search_locations or ()) if spec else []
    found = {}
    for name, directory in DIRECTORIES.items():
        for root in roots:
            place = Path(root) / "builtin" / directory
            if place.is_dir():
                found[name] = place
    return found


async def ensure(store: ImageLayout, stamps: Path) -> None:
    """Packs the built-in projects that are missing in the store or have changed since.

    Args:
        stamps: file that remembers what the projects looked like when they were packed.
    """
    known = _known(stamps)
    tagged = {image.reference for image in store.images() if image.built_in}
    for name, directory in projects().items():
        reference = str(ImageReference(name))
        stamp = _stamp(directory)
        if known.get(name) == stamp and reference in tagged:
            continue
        await build.build(store, directory, reference, pip=[], progress=lambda _: None, built_in=True)
        known[name] = stamp
        files.write_atomically(stamps, json.dumps(known).encode())


def _known(stamps: Path) -> dict[str, list[str]]:
    return dict(json.loads(stamps.read_text())) if stamps.exists() else {}


def _stamp(directory: Path) -> list[str]:
    stamps = []
    for path in project.files(directory):
        status = (directory / path).stat()
        if "__pycache__" not in path.parts:
            stamps.append(f"{path} {status.st_size} {status.st_mtime_ns}")
    return stamps
