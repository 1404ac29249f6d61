import os
import stat
from pathlib import Path

import pytest
from agentruntime import errors
from agentruntime.files import write_atomically


def test_it_replaces_a_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text("old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [found.name for found in tmp_path.glob("*state*")] == ["state.json"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_folder_is_on_disk_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, bytes]] = []
    path = tmp_path / "state.json"

    def record(descriptor: int) -> None:
        target = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        synced.append((target, path.read_bytes() if path.exists() else b""))

    monkeypatch.setattr(os, "fsync", record)
    write_atomically(path, b"new")
    assert synced[-1] == (str(tmp_path), b"new")
    assert len(synced) == 2


def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    path.write_text("old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(errors.DiskFull, match=f"the disk that holds {tmp_path}; make room"):
        write_atomically(path, b"new")
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.glob("*state*")] == ["state.json"]
