"""Generates the SDK's Python from the protos, or with --check says whether what is committed is current.

The files keep their proto names (`uapi/v1/x.proto`) in the descriptor pool, but their Python lives inside the
SDK, so that no top-level package `uapi` lands in anyone's environment; their imports are rewritten to match.
"""

import filecmp
import re
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
TARGET = ROOT.parent / "sdk" / "agentruntime" / "_proto"
PACKAGE = "agentruntime._proto"


def generate(target: Path) -> None:
    """Writes messages, stubs and their type stubs below `target`."""
    protos = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("uapi/v1/*.proto"))
    arguments = [
        "protoc",
        f"-I{ROOT}",
        f"-I{files('grpc_tools') / '_proto'}",
        f"--python_out={target}",
        f"--grpc_python_out={target}",
        f"--mypy_out=quiet:{target}",
        f"--mypy_grpc_out=quiet:{target}",
        *protos,
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")
    for path in (*target.rglob("*.py"), *target.rglob("*.pyi")):
        text = path.read_text()
        text = re.sub(r"^from uapi\.v1 import", f"from {PACKAGE}.uapi.v1 import", text, flags=re.M)
        text = re.sub(r"^import uapi\.v1\.(\w+)( as|$)", rf"import {PACKAGE}.uapi.v1.\1\2", text, flags=re.M)
        text = re.sub(r"(?<![\w.'\"/])uapi\.v1\.(\w+_pb2)\b", rf"{PACKAGE}.uapi.v1.\1", text)
        path.write_text(text)
    for package in (target, target / "uapi", target / "uapi" / "v1"):
        (package / "__init__.py").touch()


def stale(fresh: Path, committed: Path) -> list[str]:
    """Paths, relative to the target, that differ between the two trees."""
    names = {
        str(p.relative_to(base)) for base in (fresh, committed) for p in base.rglob("*.py*") if p.suffix != ".pyc"
    }
    return sorted(
        name
        for name in names
        if not (fresh / name).exists()
        or not (committed / name).exists()
        or not filecmp.cmp(fresh / name, committed / name, shallow=False)
    )


def main() -> None:
    if sys.argv[1:] == ["--check"]:
        with tempfile.TemporaryDirectory() as scratch:
            generate(Path(scratch))
            if differing := stale(Path(scratch), TARGET):
                raise SystemExit("generated code is stale, run `make proto`: " + ", ".join(differing))
        return
    TARGET.mkdir(parents=True, exist_ok=True)
    generate(TARGET)


if __name__ == "__main__":
    main()
