"""What a project's folder holds beside the agent, and an image does not: the client packs without it, the pool
leaves it out of whatever comes in.
"""

import fnmatch
import re
from pathlib import PurePath

# Names of files and folders, as fnmatch has them: version control, virtual environments, what is made on the way,
# editors' files, and secrets.
PATTERNS = (
    ".git", ".hg", ".svn", ".venv", "venv", "__pycache__", "*.pyc", "*.pyo", "*.egg-info", "node_modules",
    ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", ".tox", ".nox", ".idea", ".vscode", ".DS_Store",
    ".env", "*.swp", "*~", ".#*",
)  # fmt: skip
_LEFT_OUT = re.compile("|".join(fnmatch.translate(pattern) for pattern in PATTERNS))


def left_out(path: PurePath) -> bool:
    """Whether a path, relative to the project, is left out: by its own name or that of a folder above it."""
    return any(_LEFT_OUT.match(part) for part in path.parts)
