"""Where images come from, and what those of a pool that was killed leave behind."""

from pathlib import Path

import pytest
from agentruntime.errors import ImageNotFound
from agentruntime.home import Home

from agent_pool.images.catalog import Catalog, no_engine
from agent_pool.images.container import ContainerImages


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


async def test_the_engine_is_not_asked_for_those_who_may_not_have_pip_run(tmp_path: Path) -> None:
    asked = []

    async def engine() -> ContainerImages:
        asked.append(True)
        return await no_engine()

    home = Home(tmp_path)
    home.create()
    catalog = Catalog(home, [], set, engine)
    await catalog.prepare()
    for from_engine in (False, True):
        with pytest.raises(ImageNotFound):
            await catalog.obtain("other:2", from_engine=from_engine)
        assert bool(asked) is from_engine
