"""Logs of a real agent: each line an object, sent to an aggregator, kept for so long, in order."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.agent_pool.logs.receiver import Receiver
from tests.integration.conftest import Platform
from tests.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.root]

CODE = """
import logging, os, subprocess, sys, threading
from agentruntime import Agent

early = logging.StreamHandler()  # holds on to the template's stderr
class Teller(Agent):
    async def start(self):
        print("to stdout")
        print("to stderr", file=sys.stderr)
        sys.stdout.buffer.write(b"not \\xff utf-8\\n")
        sys.stdout.flush()
        early.stream.write("by an early handler\\n")
        subprocess.run([sys.executable, "-c", "print('of a child')"], check=True)
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
        logging.getLogger("teller").warning("structured")
    def generate(self, prompt, *, temperature, max_tokens):
        print(prompt)
        return prompt
"""


def build(platform: Platform, project: Path) -> None:
    (project / "agent.yaml").write_text("name: teller\nversion: 1.0.0\nentrypoint: teller:Teller\n")
    (project / "teller.py").write_text(CODE)
    platform.agent("build", str(project))


def entries(platform: Platform, *arguments: str) -> list[dict[str, Any]]:
    """What `agent logs` shows, each line as the object that it is."""
    shown = platform.agent("logs", "teller", *arguments, "--json").stdout.splitlines()
    return [json.loads(json.loads(line)["line"]) for line in shown]


async def test_logs_of_an_agent(platform: Platform, project: Path) -> None:
    build(platform, project)

    async def trouble() -> bool:
        """Whether `agent ps` says that lines do not arrive."""
        return "log lines do not reach fluentd://" in await agent("ps", "--agents", "--agent", "teller")

    async def at_rest() -> bool:
        return not await trouble()

    async def forgotten() -> bool:
        return not await asyncio.to_thread(entries, platform)

    async def agent(*arguments: str) -> str:
        return (await asyncio.to_thread(platform.agent, *arguments)).stdout

    async with Receiver() as receiver:
        try:
            await agent(
                "run", "teller:1.0.0", "--log-format", "json", "--replicas", "2",
                "--log-aggregator", receiver.aggregator,
            )  # fmt: skip
            said = "to stdout, to stderr, not \\xff utf-8, by an early handler, of a child, structured"
            await eventually(lambda: receiver.events.count("worker serves") == 2, timeout_s=60)
            for event in said.split(", "):
                assert receiver.events.count(event) == 2
            found = await asyncio.to_thread(entries, platform)
            needed = {"time", "level", "event", "worker_id", "agent"}
            assert all(needed <= entry.keys() for entry in found)
            (error, *_) = await asyncio.to_thread(entries, platform, "--level", "error", "--tail", "2")
            assert error["event"] == "ZeroDivisionError: division by zero"
            assert error["exception"].startswith("Traceback (most recent call last):\n  File")
            times = [entry["time"] for entry in found]
            assert times == sorted(times)

            await receiver.stop()
            await agent("call", "teller", "while it was away")
            await eventually(trouble, timeout_s=60)
            await receiver.start()
            await eventually(lambda: "while it was away" in receiver.events, timeout_s=60)
            await eventually(at_rest, timeout_s=60)

            assert receiver.events.count("worker serves") == 2
            recent = await asyncio.to_thread(entries, platform, "--since", "10m", "--tail", "1")
            assert recent[0]["event"] == "while it was away"
            await agent("update", "teller", "--log-retention", "1s", "--log-aggregator", "none")
            await eventually(forgotten, timeout_s=60)
        finally:
            await asyncio.to_thread(platform.agent, "stop", "teller")
