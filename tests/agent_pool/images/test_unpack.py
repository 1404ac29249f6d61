"""Images that somebody made up to get out of their bundle, or to fill the disk."""

import gzip
import json
from pathlib import Path

import pytest
from agentruntime import errors

from agent_pool.images import layout, project
from agent_pool.images.layout import ImageLayout
from agent_pool.images.unpack import unpack
from tests.agent_pool.images.test_project import tar

Member = tuple[str, str, str]


@pytest.fixture
def store(tmp_path: Path) -> ImageLayout:
    made = ImageLayout(tmp_path / "images")
    made.create()
    (tmp_path / "bundles").mkdir()
    return made


def image_of(store: ImageLayout, *layers: bytes) -> str:
    manifest = {"mediaType": layout.MANIFEST_TYPE, "layers": [{"digest": store.add_blob(layer)} for layer in layers]}
    return store.add_blob(json.dumps(manifest).encode())


def layer_of(*members: Member) -> bytes:
    return gzip.compress(tar(*members).getvalue())


def test_layers_lie_over_each_other(store: ImageLayout, tmp_path: Path) -> None:
    layers = [
        layer_of(("dir", "app", ""), ("file", "app/a", "x")),
        layer_of(("dir", "deps", ""), ("sym", "deps/b", "c")),
    ]
    bundle = unpack(store, image_of(store, *layers), tmp_path / "bundles")
    assert ((bundle / "app/a").read_text(), (bundle / "deps/b").readlink()) == ("x", Path("c"))


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ([[("file", "app/a", "x"), ("file", "app/a", "x")]], "twice"),
        ([[("file", "app/a", "x")], [("file", "app/a", "x")]], "twice"),
        ([[("file", "app", "x")], [("file", "app/a", "x")]], "below a file"),
        ([[("sym", "app/b/up", "../..")], [("sym", "app/b/out", "up/../../etc")]], "another link"),
        ([[("sym", "app/b/out", "up/../../etc")], [("sym", "app/b/up", "../..")]], "another link"),
    ],
)
def test_what_is_refused(store: ImageLayout, tmp_path: Path, layers: list[list[Member]], says: str) -> None:
    image = image_of(store, *(layer_of(*members) for members in layers))
    with pytest.raises(errors.DataLoss, match=says):
        unpack(store, image, tmp_path / "bundles")
    assert not list((tmp_path / "bundles").iterdir())


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(b"x" * 5000)[:-20], gzip.compress(b"no tar")])
def test_garbage(store: ImageLayout, tmp_path: Path, content: bytes) -> None:
    with pytest.raises(errors.DataLoss, match="cannot be unpacked"):
        unpack(store, image_of(store, content), tmp_path / "bundles")


def test_limits_are_of_all_layers(store: ImageLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = image_of(store, *(layer_of(("file", f"app/{name}", "x" * 600)) for name in "ab"))
    deps = image_of(store, *(layer_of(("file", f"deps/{name}", "x" * 600)) for name in "ab"))
    for limit, value in (("LARGEST_BYTES", 1000), ("MOST_FILES", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(project, limit, value)
            with pytest.raises(errors.ResourceExhausted):
                unpack(store, image, tmp_path / "bundles")
            unpack(store, deps, tmp_path / "bundles")
    monkeypatch.setattr(project, "LARGEST_REQUIREMENTS_BYTES", 1000)
    (tmp_path / "again").mkdir()
    with pytest.raises(errors.ResourceExhausted):
        unpack(store, deps, tmp_path / "again")
