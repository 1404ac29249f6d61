"""Events of a message as a chat completion, whole or in chunks. Pure: what comes out depends on the events alone."""

import time
from typing import Any

from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.errors import Aborted

from uapi_gateway.conversations.sending import failure_of
from uapi_gateway.http.openai.identifiers import COMPLETION, Place
from uapi_gateway.http.openai.messages import whole_text
from uapi_gateway.http.openai.usage import Usage, usage


class Completion:
    """One chat completion.

    What was sent cannot be taken back. Where a worker was lost and the message is handled again, the pieces that come
    again are left out as long as they are the same; another answer ends the stream with an error.

    Args:
        place: the message.
        input_bytes: of the texts that were sent.
        streams: the chunks are told. Else there is nothing to take back.
        with_usage: a last chunk tells the usage.
    """

    def __init__(self, place: Place, input_bytes: int, *, streams: bool, with_usage: bool = False) -> None:
        self._place = place
        self._input_bytes = input_bytes
        self._streams = streams
        self._with_usage = with_usage
        self._created = int(time.time())
        # What the caller has, in pieces, and how much of that this attempt has said so far.
        self._sent: list[str] = []
        self._sent_length = 0
        self._said_length = 0
        self._reply: proto.ChatMessage | None = None

    @property
    def ended(self) -> bool:
        return self._reply is not None

    def on(self, event: proto.Event) -> list[dict[str, Any]]:
        """The chunks that an event is.

        Raises:
            AgentError: the message has failed.
        """
        match event.WhichOneof("content"):
            case "message":
                if event.HasField("time"):
                    self._created = event.time.seconds
                return [self._chunk({"role": "assistant", "content": ""})]
            case "attempt":
                self._said_length = 0
            case "chunk":
                return self._more(whole_text([event.chunk]))
            case "completion":
                self._reply = event.completion
                # It says all of it once more.
                self._said_length = 0
                chunks = self._more(whole_text(event.completion.parts))
                chunks.append(self._chunk({}, finish_reason="stop"))
                if self._with_usage:
                    chunks.append({**self._chunk(None), "usage": self._usage().of_completion()})
                return chunks
            case "failure":
                raise failure_of(event.failure)
        return []

    def whole(self) -> dict[str, Any]:
        """The completion, when it has ended."""
        assert self._reply is not None
        message = {"role": "assistant", "content": whole_text(self._reply.parts), "refusal": None}
        return {
            **self._head("chat.completion"),
            "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
            "usage": self._usage().of_completion(),
        }

    def _more(self, text: str) -> list[dict[str, Any]]:
        """What of the next text the caller does not have."""
        if not self._streams:
            return []
        if self._said_length < self._sent_length:
            again = self._again()[self._said_length :]
            if again.startswith(text) and (self._reply is None or text == again):
                self._said_length += len(text)
                return []
            if not text.startswith(again):
                raise _restarted()
            text = text[len(again) :]
        self._sent.append(text)
        self._sent_length = self._said_length = self._sent_length + len(text)
        return [self._chunk({"content": text})] if text else []

    def _again(self) -> str:
        """All that the caller has."""
        self._sent = ["".join(self._sent)]
        return self._sent[0]

    def _usage(self) -> Usage:
        assert self._reply is not None
        return usage(self._reply.metadata, self._input_bytes, whole_text(self._reply.parts))

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._place.written(COMPLETION),
            "object": kind,
            "created": self._created,
            "model": self._place.agent,
            "system_fingerprint": None,
        }

    def _chunk(self, delta: dict[str, Any] | None, finish_reason: str | None = None) -> dict[str, Any]:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}]
        told: dict[str, Any] = {"usage": None} if self._with_usage else {}
        return {**self._head("chat.completion.chunk"), "choices": choices if delta is not None else [], **told}


def _restarted() -> Aborted:
    return Aborted(
        "a worker was lost, and the agent that began again says something else; send the messages again",
        reason="REPLY_RESTARTED",
    )
