"""What the images of a pool that was killed leave behind."""

from pathlib import Path

from agentruntime.home import Home

from agent_pool.images.catalog import Catalog


async def test_a_killed_pool_leaves_nothing_for_ever(tmp_path: Path) -> None:
    home = Home(tmp_path)
    blobs = home.images / "blobs" / "sha256"
    for part in (blobs, home.bundles / "kept", home.state):
        part.mkdir(parents=True)
    for left in (home.images / ".pull.x", home.bundles / ".unpack.x", home.bundles / ".removed.x"):
        left.mkdir()
        (left / "file").touch()
    (blobs / ".layer.x").touch()
    await Catalog(home, [], set).prepare()
    assert [path.name for path in home.bundles.iterdir()] == ["kept"]
    assert not list(home.images.rglob(".*"))
