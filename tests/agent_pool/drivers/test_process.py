"""The process driver: what a start that fails early leaves."""

import os
from pathlib import Path

import pytest
from agentruntime.home import Home

from agent_pool.cgroups.base import Limits
from agent_pool.drivers.base import Launch, Revision
from agent_pool.drivers.process import ProcessDriver
from agent_pool.logs import LogStore
from agent_pool.secrets.vault import Vault
from agent_pool.settings import PoolSettings
from tests.agent_worker import templates
from tests.waiting import eventually

pytestmark = pytest.mark.integration
ECHO = """
from agentruntime import Agent
class A(Agent):
    def generate(self, prompt, *, temperature, max_tokens):
        return prompt
"""


async def prepared(directory: Path) -> tuple[ProcessDriver, Revision, Home]:
    """A driver whose revision is ready to start, and has a secret."""
    home = Home(directory)
    home.create()
    settings = PoolSettings()
    vault = Vault(home.state, home.secrets_key)
    await vault.put("openai", b"sk-0123456789", ["a"])
    driver = ProcessDriver(home, LogStore(home.logs), None, settings.worker_environment, vault=vault)
    revision = Revision(
        key="a@1", agent="a", number=1, image_digest="", bundle=str(templates.write_bundle(home.root / "b", m=ECHO)),
        entrypoint="m:A", services=(), env={}, log_level="INFO", venv="", host_network=False, agent_index=0,
        limits=Limits(), wants_gpus=False, secrets=("openai",),
        concurrency=1, default_timeout_s=10.0, start_timeout_s=20.0,
    )  # fmt: skip
    await driver.prepare(revision)
    return driver, revision, home


async def test_a_start_that_fails_early_gives_back_its_slot_and_its_spare(short_directory: Path) -> None:
    driver, revision, home = await prepared(short_directory)
    try:
        [agent_directory] = (home.run / "w").iterdir()
        for slot in (1, 2):
            launch = Launch(f"a-{slot}", f"a-{slot}", revision)
            in_the_way = agent_directory / str(slot)
            in_the_way.touch()
            with pytest.raises(FileExistsError):
                await driver.start(launch)
            in_the_way.unlink()
            assert (await driver.start(launch)).handle["slot"] == slot
            await eventually(lambda: driver._spares._waiting)  # which the second start takes
    finally:
        await driver.close()


async def test_a_log_that_cannot_be_opened_leaves_no_secrets_open(short_directory: Path) -> None:
    driver, revision, home = await prepared(short_directory)
    in_the_way = home.logs / "agents" / "a" / "a-1.log"
    in_the_way.mkdir(parents=True)
    try:
        with pytest.raises(IsADirectoryError):
            await driver.start(Launch("a-1", "a-1", revision))
        assert not [each for each in list(Path("/proc/self/fd").iterdir()) if "memfd" in os.path.realpath(each)]
    finally:
        await driver.close()
