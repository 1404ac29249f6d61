"""The verbs of an agent's life, typed one after the other as an operator would, while it is called all the time."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from agentruntime import Client, errors

from tests.integration.conftest import Platform

pytestmark = [pytest.mark.integration, pytest.mark.root, pytest.mark.timeout(300)]

CODE = """
from agentruntime import Agent
class Kept(Agent):
    async def start(self):
        {start}
    def generate(self, prompt, *, temperature, max_tokens):
        return "{says}"
"""


def build(platform: Platform, project: Path, version: str, start: str = "pass") -> str:
    """Builds a version of the agent that says its version; the image's reference."""
    (project / "agent.yaml").write_text(f"name: kept\nversion: {version}\nentrypoint: kept:Kept\n")
    (project / "kept.py").write_text(CODE.format(says=version, start=start))
    platform.agent("build", str(project))
    return f"kept:{version}"


@contextmanager
def called_all_the_time(platform: Platform) -> Iterator[set[str]]:
    """Calls the agent until the end, through the SDK; yields what it has said. A failure is raised at the end."""
    said: set[str] = set()
    failed: list[errors.AgentError] = []
    done = threading.Event()

    def call() -> None:
        with Client(platform.grpc_address) as client:
            while not done.wait(0.02):
                try:
                    said.add(client.generate_text("kept", "who?").text)
                except errors.AgentError as error:
                    failed.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    try:
        yield said
    finally:
        done.set()
        caller.join()
    assert failed == []


def states(platform: Platform) -> list[tuple[str, int]]:
    return [(row["state"].removeprefix("WORKER_STATE_"), row["revision"]) for row in platform.workers("kept")]


def history(platform: Platform) -> list[dict[str, Any]]:
    """Newest first."""
    return list(json.loads(platform.agent("history", "kept", "--output", "json").stdout))


def test_an_agents_life(platform: Platform, project: Path) -> None:
    first, second = build(platform, project, "1.0.0"), build(platform, project, "2.0.0")
    broken = build(platform, project, "3.0.0", start='raise RuntimeError("a bad release")')
    platform.agent("run", first, "--replicas", "2")
    with called_all_the_time(platform) as said:
        platform.agent("update", "kept", "--image", second)
        assert states(platform) == [("READY", 2)] * 2
        refused = platform.agent("update", "kept", "--image", broken, code=10 + 9)
        assert "RuntimeError: a bad release" in refused.stderr
        assert states(platform) == [("READY", 2)] * 2
        newest = history(platform)[0]
        assert (newest["image"], newest["current"]) == (broken, False)
        assert "a bad release" in newest["failure"]
        platform.agent("rollback", "kept")
        assert states(platform) == [("READY", 4)] * 2
        assert [row["image"] for row in history(platform) if row["current"]] == [first]
        canary = platform.workers("kept")[0]["worker_id"]
        platform.agent("update", canary, "--image", second)
        assert sorted(states(platform)) == [("READY", 4), ("READY", 5)]
        platform.agent("rollback", "kept")
        assert states(platform) == [("READY", 4)] * 2
        before = {row["pid"] for row in platform.workers("kept")}
        platform.agent("restart", "kept")
        assert before.isdisjoint(row["pid"] for row in platform.workers("kept"))
        platform.agent("scale", "kept", "--replicas", "3")
        assert states(platform) == [("READY", 4)] * 3
        kept = {row["pid"] for row in platform.workers("kept")}
        platform.agent("scale", "kept", "--memory", "200MB", "--cpu", "0.1")
        rows = platform.workers("kept")
        assert {row["pid"] for row in rows} == kept, "resources were to change in place"
        assert {row["resources"]["memory_bytes"] for row in rows} == {200_000_000}
        platform.agent("scale", "kept", "--replicas", "0")
    assert said == {"1.0.0", "2.0.0"}
    assert platform.agent("call", "kept", "wake up").stdout.strip() == "1.0.0"
    platform.agent("stop", "kept")
    assert "agent run kept:1.0.0" in platform.agent("call", "kept", "wake up", code=10 + 9).stderr
