"""What an author may set as a conversation's state, and what comes back."""

from pathlib import Path
from typing import Any

import pytest
from agentruntime import errors
from agentruntime.agent import Agent
from agentruntime.conversation import ChatMessage, Context
from pydantic import BaseModel

from tests.agent_worker.conversations.serving import serving, text


class Tea(BaseModel):
    cups: int = 1


class Keeping(Agent):
    async def on_message(self, message: ChatMessage, ctx: Context) -> str:
        value: Any = {"model": Tea(), "none": None, "whole": {1: 2}, "mixed": {"a": [{"b": 1, 3: 4}]}}[message.text]
        await ctx.set_state(value)
        return f"{ctx.state} {ctx.state_as(Tea)}"


async def test_a_model_is_taken_and_given_and_none_is_none(tmp_path: Path) -> None:
    async with serving(Keeping, tmp_path) as (worker, _):
        assert text((await worker.send("model")).reply) == "{'cups': 1} cups=1"
        assert text((await worker.send("none")).reply) == "None None"


@pytest.mark.parametrize(("said", "key"), [("whole", 1), ("mixed", 3)])
async def test_keys_that_are_no_text_are_refused(tmp_path: Path, said: str, key: int) -> None:
    async with serving(Keeping, tmp_path) as (worker, _):
        with pytest.raises(errors.InvalidArgument, match=f"JSON: the key {key} of an object is int, and must be str"):
            await worker.send(said)
