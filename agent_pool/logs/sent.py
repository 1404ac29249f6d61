"""How far an agent's logs have been sent elsewhere: on disk, so that a pool that takes over goes on from there."""

import json
from collections.abc import Collection
from pathlib import Path


class Sent:
    """Of one agent: by log, the file's inode and the position in it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, tuple[int, int]] = {}
        try:
            data = json.loads(path.read_text())
            self._places = {str(name): (int(inode), int(place)) for name, (inode, place) in data.items()}
        except FileNotFoundError:
            pass  # nothing was sent yet
        except (ValueError, TypeError, AttributeError):
            pass  # cut short by a machine that went down: all that is kept is sent again

    def place(self, name: str, inode: int, size: int) -> int:
        """From where on a log is to be sent: its start if it is another file than the one that was sent."""
        known, place = self._places.get(name, (0, 0))
        return place if known == inode and place <= size else 0

    def forget_all_but(self, names: Collection[str]) -> None:
        """Of the logs that there are; another one may get the name, and even the inode, of one that is gone."""
        self._places = {name: place for name, place in self._places.items() if name in names}

    def advance(self, places: dict[str, tuple[int, int]]) -> None:
        """Remembers what was sent. Blocks for a moment."""
        self._places |= places
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch = self._path.with_suffix(".new")
        scratch.write_text(json.dumps(self._places))
        scratch.replace(self._path)
