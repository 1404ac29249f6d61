"""The pool's move to a leaf, with forks in between, on a directory that behaves as a v2 group does."""

import errno
from pathlib import Path

import pytest

from agent_pool.cgroups import base
from agent_pool.cgroups.v2 import HierarchyV2


class Kernel:
    """A group's files; every read of its processes finds one that was born since."""

    def __init__(self, own: Path, births: int) -> None:
        self.own = own
        self.procs = ["10", "11"]
        self.births = births
        self.enabled = ""
        self.moved: list[str] = []

    def read(self, path: Path) -> str:
        if path == self.own / "cgroup.procs":
            listed = "\n".join(self.procs)
            if self.births and self.procs:
                self.births -= 1
                self.procs.append(str(1000 + self.births))
            return listed
        if path.name == "cgroup.controllers":
            return "memory cpu pids"
        return self.enabled if path.name == "cgroup.subtree_control" else ""

    def write(self, path: Path, text: str) -> int:
        if path.name == "cgroup.procs":
            self.procs.remove(text)
            self.moved.append(text)
        elif path == self.own / "cgroup.subtree_control":
            if self.procs:
                raise OSError(errno.EBUSY, "Device or resource busy")
            self.enabled = "memory cpu pids"
        return len(text)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    directory = tmp_path / "own"
    directory.mkdir()
    (directory / "cgroup.type").touch()
    return directory


def install(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> HierarchyV2:
    monkeypatch.setattr(base, "read", kernel.read)
    monkeypatch.setattr(Path, "write_text", lambda path, text: kernel.write(path, text))  # noqa: PLW0108 — because a bound method would not get the path
    return HierarchyV2(kernel.own, "agentruntime-x")


def test_what_is_born_during_the_move_is_moved_too(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(own, births=3)
    install(kernel, monkeypatch).prepare()
    assert kernel.procs == []
    assert len(kernel.moved) == 5
    assert (own / "agentruntime-x-pool").is_dir()


def test_it_gives_up_on_one_that_never_stops_forking(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="busy"):
        install(Kernel(own, births=10_000), monkeypatch).prepare()
