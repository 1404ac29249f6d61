"""How many tokens a message took: as the agent says, or an estimate that says that it is one.

An agent that knows says it in the metadata of its reply: `prompt_tokens` and `completion_tokens`. Of any other only
its caller's text and its reply are known here: four bytes of UTF-8 count as a token, rounded up, as in English texts
on average, and the usage has `"estimated": true`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto

INPUT, OUTPUT = "prompt_tokens", "completion_tokens"
# https://help.openai.com/en/articles/4936856: a token is about 4 characters of English.
_BYTES = 4
_MOST = 2**53


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens in and out."""

    input_tokens: int
    output_tokens: int
    estimated: bool

    def of_completion(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.input_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.input_tokens + self.output_tokens,
            **self._mark(),
        }

    def of_response(self) -> dict[str, Any]:
        return {
            "input_tokens": self.input_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": self.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.input_tokens + self.output_tokens,
            **self._mark(),
        }

    def _mark(self) -> dict[str, Any]:
        return {"estimated": True} if self.estimated else {}


def usage(said: Mapping[str, str], input_bytes: int, output: str) -> Usage:
    """The usage of a message.

    Args:
        said: the metadata of the reply.
        input_bytes: of the texts that were sent.
        output: the text of the reply.
    """
    told_input, told_output = _count(said.get(INPUT, "")), _count(said.get(OUTPUT, ""))
    return Usage(
        _estimate(input_bytes) if told_input is None else told_input,
        _estimate(len(output.encode())) if told_output is None else told_output,
        estimated=told_input is None or told_output is None,
    )


def text_bytes(messages: Iterable[proto.ChatMessage]) -> int:
    """Of all texts in messages."""
    return sum(len(part.text.encode()) for message in messages for part in message.parts)


def _count(said: str) -> int | None:
    """A figure that an agent tells; None if it is none."""
    return int(said) if said.isascii() and said.isdigit() and len(said) < 17 and int(said) < _MOST else None


def _estimate(size_bytes: int) -> int:
    return -(-size_bytes // _BYTES)
