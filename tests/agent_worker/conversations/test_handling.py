"""Whatever an author's handler raises: its message fails with it, and nothing else does."""

import asyncio
import sys
from pathlib import Path

import pytest
from agentruntime.agent import Agent
from agentruntime.conversation import ChatMessage, Context

from tests.agent_worker.conversations.serving import WHO, serving, text


class Odd(Agent):
    async def on_message(self, message: ChatMessage, ctx: Context) -> str:
        match message.text:
            case "exit":
                sys.exit(4)
            case "interrupt":
                raise KeyboardInterrupt
            case "own":
                raise Own
            case "own cancellation":
                task = asyncio.create_task(asyncio.sleep(60))
                task.cancel()
                await task
        return "well"


class Own(BaseException):
    pass


@pytest.mark.parametrize(
    ("does", "raised"),
    [
        ("exit", "SystemExit: 4"),
        ("interrupt", "KeyboardInterrupt"),
        ("own", "test_handling.Own"),
        ("own cancellation", "asyncio.exceptions.CancelledError"),
    ],
)
async def test_it_fails_its_message_alone(tmp_path: Path, does: str, raised: str) -> None:
    async with serving(Odd, tmp_path) as (worker, log):
        failure = (await worker.events(does))[-1].failure
        assert (failure.reason, failure.message[:27]) == ("INTERNAL", "internal error, request id ")
        assert log.kept[WHO, "c"].events[-1].failure.traceback.splitlines()[-1].endswith(raised)
        assert text((await worker.send("on")).reply) == "well"
