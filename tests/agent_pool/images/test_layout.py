"""The store: an OCI layout that others could read, the same bytes from the same project, nothing damaged unseen."""

import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
from agentruntime import errors
from agentruntime.names import ImageReference

from agent_pool.images import build, builtin, unpack
from agent_pool.images.layout import ImageLayout, StoredImage


@pytest.fixture
def store(tmp_path: Path) -> ImageLayout:
    layout = ImageLayout(tmp_path / "images")
    layout.create()
    layout.create()  # does nothing
    return layout


def write_project(directory: Path, text: str = "class C: pass\n") -> Path:
    directory.mkdir()
    (directory / "agent.yaml").write_text("name: tester\nversion: 1.0.0\nentrypoint: m:C\n")
    (directory / "m.py").write_text(text)
    (directory / "data").mkdir()
    (directory / "data" / "run.sh").write_text("#!/bin/sh\n")
    (directory / "data" / "run.sh").chmod(0o700)
    (directory / "data" / "link").symlink_to("run.sh")
    return directory


async def make(store: ImageLayout, directory: Path, reference: str = "") -> StoredImage:
    return await build.build(store, directory, reference, pip=[], progress=lambda _: None)


async def test_the_same_project_gives_the_same_digest(store: ImageLayout, tmp_path: Path) -> None:
    first = await make(store, write_project(tmp_path / "one"))
    other = write_project(tmp_path / "two")
    os.utime(other / "m.py", (1, 1))
    (other / "m.py").chmod(0o600)
    (other / "__pycache__").mkdir()
    (other / "__pycache__" / "m.pyc").write_text("x")
    second = await make(store, other, "tester:again")
    changed = await make(store, write_project(tmp_path / "three", "class C: x = 1\n"), "tester:changed")
    assert first.reference == "tester:1.0.0"
    assert first.digest == second.digest != changed.digest


@pytest.mark.parametrize(("reference", "said"), [("", "packing tester:1.0.0"), ("other:2", "packing other:2")])
async def test_a_build_says_what_it_makes(store: ImageLayout, tmp_path: Path, reference: str, said: str) -> None:
    steps: list[str] = []
    await build.build(store, write_project(tmp_path / "p"), reference, pip=[], progress=steps.append)
    assert steps == [said]


async def test_it_is_an_oci_layout(store: ImageLayout, tmp_path: Path) -> None:
    image = await make(store, write_project(tmp_path / "project"))
    root = tmp_path / "images"
    assert json.loads((root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    [entry] = json.loads((root / "index.json").read_text())["manifests"]
    assert entry["annotations"]["org.opencontainers.image.ref.name"] == "tester:1.0.0"

    def blob(descriptor: dict[str, object]) -> Path:
        path = root / "blobs" / str(descriptor["digest"]).replace(":", "/")
        data = path.read_bytes()
        assert len(data) == descriptor["size"]
        assert f"sha256:{hashlib.sha256(data).hexdigest()}" == descriptor["digest"]
        return path

    manifest = json.loads(blob(entry).read_text())
    config = json.loads(blob(manifest["config"]).read_text())
    [layer] = manifest["layers"]
    with tarfile.open(blob(layer)) as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == sorted(member.name for member in members)
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(0, 0, 0, "")}
    assert len(config["rootfs"]["diff_ids"]) == 1
    assert image.size_bytes == layer["size"]


async def test_unpack_and_damage(store: ImageLayout, tmp_path: Path) -> None:
    image = await make(store, write_project(tmp_path / "project"))
    bundles = tmp_path / "bundles"
    bundles.mkdir()
    bundle = unpack.unpack(store, image.digest, bundles)
    assert unpack.unpack(store, image.digest, bundles) == bundle
    assert (bundle / "app" / "data" / "link").resolve().name == "run.sh"
    assert (bundle / "app" / "data" / "run.sh").stat().st_mode & 0o777 == 0o755
    assert (bundle / "app" / "m.py").stat().st_mode & 0o777 == 0o644
    unpack.remove(bundles, [image.digest])
    unpack.remove(bundles, [image.digest])
    [layer] = store.manifest(image.digest)["layers"]
    path = store.blob_path(layer["digest"])
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(errors.DataLoss, match="damaged"):
        unpack.unpack(store, image.digest, bundles)
    path.unlink()
    with pytest.raises(errors.DataLoss, match="lacks"):
        unpack.unpack(store, image.digest, bundles)
    assert list(bundles.iterdir()) == []


async def test_tags_and_garbage(store: ImageLayout, tmp_path: Path) -> None:
    first = await make(store, write_project(tmp_path / "one"), "tester:a")
    await make(store, tmp_path / "one", "tester:b")
    blobs = len(list((tmp_path / "images" / "blobs" / "sha256").iterdir()))
    assert blobs == 3
    second = await make(store, write_project(tmp_path / "two", "x = 1\n"), "tester:b")
    assert [image.digest for image in store.images()] == [first.digest, second.digest]
    store.remove(ImageReference.parse("tester:a"))
    assert len(list((tmp_path / "images" / "blobs" / "sha256").iterdir())) == 3
    assert store.find(ImageReference.parse(f"tester@{second.digest}")) == second
    with pytest.raises(errors.ImageNotFound, match="there is tester:b"):
        store.find(ImageReference.parse("tester:a"))
    store.remove(ImageReference.parse(f"tester@{second.digest}"))
    assert list((tmp_path / "images" / "blobs" / "sha256").iterdir()) == []
    with pytest.raises(errors.ImageNotFound, match="`agent build` makes one; there is none"):
        store.find(ImageReference.parse("tester:a"))
    # A digest is what must come out.
    pinned = await make(store, tmp_path / "two", f"tester@{second.digest}")
    assert store.find(ImageReference.parse(f"tester@{second.digest}")) == pinned
    with pytest.raises(errors.DataLoss, match="nothing of it is kept"):
        await make(store, tmp_path / "two", f"tester@{first.digest}")
    assert store.images() == [pinned]
    store.remove(ImageReference.parse(f"tester@{second.digest}"))
    assert list((tmp_path / "images" / "blobs" / "sha256").iterdir()) == []


async def test_built_in_images_come_from_the_installed_package(store: ImageLayout, tmp_path: Path) -> None:
    assert set(builtin.projects()) == {"echo", "mock-ai", "text-generator"}
    await builtin.ensure(store, tmp_path / "stamps")
    before = store.images()
    assert [(image.reference, image.built_in) for image in before] == [
        ("echo:latest", True), ("mock-ai:latest", True), ("text-generator:latest", True),
    ]  # fmt: skip
    await builtin.ensure(store, tmp_path / "stamps")
    assert store.images() == before
    with pytest.raises(errors.FailedPrecondition, match="built in"):
        store.remove(ImageReference.parse("echo"))


async def test_a_damaged_image_takes_no_other_with_it(store: ImageLayout, tmp_path: Path) -> None:
    good = await make(store, write_project(tmp_path / "good"))
    bad = await make(store, write_project(tmp_path / "bad", "class C: x = 2\n"), "tester:bad")
    store.blob_path(bad.digest).write_bytes(b"{}")
    assert store.images() == [good]
    assert store.find(ImageReference.parse("tester:1.0.0")) == good
    with pytest.raises(errors.DataLoss, match="build the image again"):
        store.find(ImageReference.parse("tester:bad"))
    # Collecting garbage goes on, and so does mending it.
    again = await make(store, tmp_path / "good", "tester:again")
    assert [image.reference for image in store.images()] == ["tester:1.0.0", "tester:again"]
    assert again.digest == good.digest
    store.remove(ImageReference.parse("tester:bad"))
    with pytest.raises(errors.ImageNotFound):
        store.find(ImageReference.parse("tester:bad"))


async def test_what_another_tool_tagged_without_a_date_is_left_out(store: ImageLayout, tmp_path: Path) -> None:
    good = await make(store, write_project(tmp_path / "good"))
    path = tmp_path / "images" / "index.json"
    index = json.loads(path.read_text())
    notes = {"org.opencontainers.image.ref.name": "other:1"}
    index["manifests"].append({**index["manifests"][0], "annotations": notes})
    path.write_text(json.dumps(index))
    assert store.images() == [good]


async def test_a_damaged_manifest_is_mended_by_building_again(store: ImageLayout, tmp_path: Path) -> None:
    good = await make(store, write_project(tmp_path / "good"))
    store.blob_path(good.digest).write_bytes(b"half of")
    assert (await make(store, tmp_path / "good")).digest == good.digest
    assert store.images()[0].digest == good.digest


@pytest.mark.parametrize("name", ["../outside", "/outside", "link/inside"])
async def test_a_foreign_layer_cannot_write_outside_its_bundle(store: ImageLayout, tmp_path: Path, name: str) -> None:
    image = await make(store, write_project(tmp_path / "project"))
    path = tmp_path / "layer"
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "app"
        archive.addfile(link)
        member = tarfile.TarInfo(name)
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    digest = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    shutil.copy(path, store.blob_path(digest))
    bundles = tmp_path / "bundles"
    bundles.mkdir()
    manifest = {**store.manifest(image.digest), "layers": [{"digest": digest}]}
    body = json.dumps(manifest).encode()
    foreign = "sha256:" + hashlib.sha256(body).hexdigest()
    store.blob_path(foreign).write_bytes(body)
    with pytest.raises(errors.DataLoss, match="cannot be unpacked"):
        unpack.unpack(store, foreign, bundles)
    assert list(bundles.iterdir()) == []
    assert not (tmp_path / "outside").exists()


async def test_requirements_are_kept_only_where_that_was_asked_and_they_are_the_same(
    store: ImageLayout, tmp_path: Path
) -> None:
    """A program that counts stands where pip would be."""
    count = tmp_path / "count"
    count.write_text("")
    installer = tmp_path / "installer.py"
    installer.write_text(
        f"import pathlib, sys\nopen({str(count)!r}, 'a').write('x')\n"
        "pathlib.Path(sys.argv[sys.argv.index('--target') + 1], 'thing.py').write_text(sys.argv[-1])\n"
    )
    project = write_project(tmp_path / "project")

    async def again(requirement: str, *, keep: bool, tag: str = "tester:dev") -> tuple[StoredImage, int]:
        text = f"name: tester\nversion: 1.0.0\nentrypoint: m:C\npython:\n  requirements: [{requirement}]\n"
        (project / "agent.yaml").write_text(text)
        image = await build.build(
            store, project, tag, pip=[sys.executable, str(installer)], progress=lambda _: None, keep_requirements=keep
        )
        return image, len(count.read_text())

    first, installed = await again("thing>=1", keep=True)
    assert installed == 1
    (project / "m.py").write_text("class C: x = 2\n")
    second, installed = await again("thing>=1", keep=True)
    assert installed == 1
    (tmp_path / "bundles").mkdir()
    unpack.unpack(store, second.digest, tmp_path / "bundles")
    assert (unpack.bundle_path(tmp_path / "bundles", second.digest) / "deps" / "thing.py").read_text() == "thing>=1"
    assert first.digest != second.digest
    assert (await again("thing>=1", keep=False))[1] == 2
    assert (await again("thing>=2", keep=True))[1] == 3
    assert (await again("thing>=2", keep=True, tag="tester:other"))[1] == 4
