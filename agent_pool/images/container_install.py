"""Runs while a container image is built: fills a directory, and leaves the same bytes there each time.

`container_install.py DIRECTORY [pip's arguments]` installs packages into it, if there are arguments, compiles all
modules below it, and sets all its times to zero. It is copied into the image and stands alone there.
"""

import compileall
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# What the platform's code needs.
_OLDEST = (3, 11)


def main(directory: Path, pip: list[str]) -> None:
    if sys.version_info < _OLDEST:
        sys.exit(f"the base image has Python {sys.version.split()[0]}; agents need 3.11 or newer")
    directory.mkdir(parents=True, exist_ok=True)
    if pip:
        _install(directory, pip)
    # By hash, and never checked again: a module's times are not in it. Sources of other Pythons stay as they are.
    compileall.compile_dir(
        directory, quiet=2, force=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    for path in [*directory.rglob("*"), directory, directory.parent]:
        os.utime(path, (0, 0), follow_symlinks=False)


def _install(directory: Path, pip: list[str]) -> None:
    # Beside it: what a layer keeps of /tmp is that it was written to, and when.
    scratch = tempfile.mkdtemp(dir=directory.parent)
    options = ["--no-compile", "--no-cache-dir", "--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    options += ["--root-user-action=ignore", "--target", str(directory)]
    try:
        status = subprocess.run(
            [sys.executable, "-I", "-B", "-m", "pip", "install", *options, *pip],
            # Without the platform's own packages, for what pip builds.
            env={**{key: value for key, value in os.environ.items() if key != "PYTHONPATH"}, "TMPDIR": scratch},
            check=False,
        ).returncode
    finally:
        shutil.rmtree(scratch)
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
