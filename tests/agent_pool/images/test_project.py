"""Projects that somebody made up to get out of their directory."""

import io
import tarfile
from pathlib import Path

import pytest
from agentruntime import errors

from agent_pool.images import project


def tar(*members: tuple[str, str, str]) -> io.BytesIO:
    """Members as (kind, name, content or link target)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for kind, name, content in members:
            member = tarfile.TarInfo(name)
            member.type = {
                "file": tarfile.REGTYPE, "dir": tarfile.DIRTYPE, "sym": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE,
                "device": tarfile.CHRTYPE, "fifo": tarfile.FIFOTYPE,
            }[kind]  # fmt: skip
            if kind == "file":
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content.encode()))
            else:
                member.linkname = content
                archive.addfile(member)
    out.seek(0)
    return out


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([("file", "../evil", "x")], "leads out of the project"),
        ([("file", "a/../../evil", "x")], "leads out of the project"),
        ([("file", "/etc/evil", "x")], "leads out of the project"),
        ([("sym", "link", "/etc")], "points out of the project"),
        ([("sym", "a/link", "../../etc")], "points out of the project"),
        ([("dir", "d", ""), ("sym", "link", "d"), ("file", "link/evil", "x")], "behind the link"),
        ([("sym", "link", "."), ("file", "link/evil", "x")], "behind the link"),
        ([("hard", "link", "/etc/passwd")], "neither a file"),
        ([("device", "null", "")], "neither a file"),
        ([("fifo", "pipe", "")], "neither a file"),
        ([("file", "a", "x"), ("file", "a", "y")], "twice"),
        ([("file", "a", "x"), ("file", "./a", "y")], "twice"),
        ([("file", "a", "x"), ("file", "a/b", "y")], "below a file"),
        ([("dir", "a/b/c", ""), ("sym", "a/b/c/up", "../../.."), ("sym", "a/b/c/out", "up/../../x")], "another link"),
        # The other way round in the tar, too.
        ([("dir", "a/b/c", ""), ("sym", "a/b/c/out", "up/../../x"), ("sym", "a/b/c/up", "../../..")], "another link"),
    ],
)
def test_what_is_refused(tmp_path: Path, members: list[tuple[str, str, str]], says: str) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(errors.InvalidArgument, match=says):
        project.extract(tar(*members), target)
    assert not (tmp_path / "evil").exists()


def test_no_tar_and_half_a_tar(tmp_path: Path) -> None:
    for garbage in (b"not a tar at all" * 100, tar(("file", "a", "x" * 5000)).getvalue()[:2048]):
        with pytest.raises(errors.InvalidArgument, match="not a readable tar"):
            project.extract(io.BytesIO(garbage), tmp_path)


def test_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(project, "LARGEST_BYTES", 1000)
    with pytest.raises(errors.ResourceExhausted):
        project.extract(tar(("file", "a", "x" * 600), ("file", "b", "x" * 600)), tmp_path)


def test_what_is_made_on_the_way_is_left_out(tmp_path: Path) -> None:
    members = [
        ("file", "a.py", "x"),
        ("file", "__pycache__/a.pyc", "x"),
        ("file", ".git/config", "x"),
        ("file", "d/.env", "x"),
    ]
    project.extract(tar(*members, ("dir", ".", ""), ("sym", "b.py", "a.py")), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.py", "b.py"]
    assert (tmp_path / "b.py").read_text() == "x"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "no agent.yaml"),
        ({"agent.yaml": "name: a\nversion: '1'\nentrypoint: m:C\n"}, "no module 'm'"),
        ({"agent.yaml": "name: a\nversion: '1'\nentrypoint: p.m:C\n", "p.py": ""}, "no p/m.py"),
        ({"agent.yaml": "name: A\nversion: '1'\nentrypoint: m:C\n"}, "not an agent name"),
    ],
)
def test_manifests_that_are_refused(tmp_path: Path, files: dict[str, str], says: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(errors.InvalidManifest, match=says):
        project.checked_manifest(tmp_path)


def test_a_manifest_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("name: a\nversion: '1'\nentrypoint: m:C\n")
    (tmp_path / "agent.yaml").symlink_to("other.yaml")
    with pytest.raises(errors.InvalidManifest, match="is a link"):
        project.load_manifest(tmp_path)
