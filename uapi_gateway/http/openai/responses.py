"""Events of a message as a response, and as the events of one. Pure: the same events give the same, and the same
`sequence_number`s, so that a stream goes on wherever it was left, from the log alone."""

import json
from typing import Any

from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.errors import Cancelled

from uapi_gateway.conversations.sending import failure_of
from uapi_gateway.http.openai.identifiers import Place
from uapi_gateway.http.openai.messages import input_item, output_text, whole_text
from uapi_gateway.http.openai.requests import INSTRUCTIONS, MAX_TOKENS, PREFIX, TEMPERATURE, is_option
from uapi_gateway.http.openai.usage import Usage, text_bytes, usage

# Options that a response tells again, each with its key in the message's metadata: numbers and switches, and text.
_JSON = {
    "temperature": TEMPERATURE,
    "max_output_tokens": MAX_TOKENS,
    "top_p": PREFIX + "top_p",
    "background": PREFIX + "background",
}
_TEXT = {name: PREFIX + name for name in ("user", "instructions", "previous_response_id")}
# An option is a short one.
_LONGEST_OPTION = 40
_MOST = 2**53
_ENDS = {"completed": "response.completed", "failed": "response.failed", "cancelled": "response.incomplete"}


class ResponseBuilder:
    """One response.

    Every attempt of the agent's is an output item of its own; one that a lost worker has left is told as
    `incomplete`, and is not in the response in the end.

    Args:
        place: the message.
        created_s: Unix time, of a message that does not say.
    """

    def __init__(self, place: Place, created_s: float) -> None:
        self._place = place
        self._created_s = created_s
        self._completed_s: float | None = None
        self._status = "queued"
        self._error: dict[str, Any] | None = None
        self._usage: Usage | None = None
        self._input: list[proto.ChatMessage] = []
        self._message: proto.ChatMessage | None = None
        self._number = 0
        # Of the output item that is open, or comes next.
        self._index = 0
        self._pieces: list[str] | None = None
        self._output: list[dict[str, Any]] = []

    @property
    def status(self) -> str:
        return self._status

    @property
    def known(self) -> bool:
        """There is such a message."""
        return self._message is not None

    @property
    def ended(self) -> bool:
        return self._status in _ENDS

    def on(self, event: proto.Event) -> list[dict[str, Any]]:
        """The events that one of the log is."""
        match event.WhichOneof("content"):
            case "earlier":
                self._input.append(event.earlier)
            case "message":
                self._message = event.message
                self._input.append(event.message)
                if event.HasField("time"):
                    self._created_s = event.time.seconds
                return [self._told("response.created")]
            case "attempt":
                return self._begun()
            case "chunk":
                return self._more(whole_text([event.chunk]))
            case "completion":
                return self._done(event)
            case "failure":
                return self._failed(event)
        return []

    def document(self) -> dict[str, Any]:
        """The response as it is now."""
        said = dict(self._message.metadata) if self._message is not None else {}
        told = {name: _json(said.get(key)) for name, key in _JSON.items()}
        told |= {name: said.get(key) for name, key in _TEXT.items()}
        return {
            "id": self._place.response_id,
            "object": "response",
            "created_at": self._created_s,
            "completed_at": self._completed_s,
            "status": self._status,
            "model": self._place.agent,
            "conversation": {"id": self._place.conversation_id},
            "output": [dict(item) for item in self._output],
            "error": self._error,
            "incomplete_details": None,
            "metadata": {key: value for key, value in said.items() if not is_option(key)},
            "parallel_tool_calls": False,
            "tool_choice": "none",
            "tools": [],
            "text": {"format": {"type": "text"}},
            "truncation": "disabled",
            "usage": self._usage.of_response() if self._usage else None,
            **told,
        }

    def input_items(self) -> list[dict[str, Any]]:
        """What was sent, the oldest first."""
        stem = self._place.written("msg_in_")
        items = enumerate(said for said in self._input if INSTRUCTIONS not in said.metadata)
        return [input_item(said, f"{stem}_{index}") for index, said in items]

    def _begun(self) -> list[dict[str, Any]]:
        left = self._close("incomplete") if self._pieces is not None else []
        if left:
            self._index += 1
        self._output = []
        if self._status == "in_progress":
            return left
        self._status = "in_progress"
        return [*left, self._told("response.in_progress")]

    def _more(self, text: str) -> list[dict[str, Any]]:
        opened = self._open() if self._pieces is None else []
        assert self._pieces is not None
        self._pieces.append(text)
        if not text:
            return opened
        return [*opened, self._event("response.output_text.delta", **self._where(), delta=text, logprobs=[])]

    def _open(self) -> list[dict[str, Any]]:
        self._pieces = []
        item = {**self._item("in_progress"), "content": []}
        return [
            self._event("response.output_item.added", output_index=self._index, item=item),
            self._event("response.content_part.added", **self._where(), part=output_text("")),
        ]

    def _close(self, status: str) -> list[dict[str, Any]]:
        """Ends the output item that is open."""
        item = self._item(status)
        part = item["content"][0]
        told = [
            self._event("response.output_text.done", **self._where(), text=part["text"], logprobs=[]),
            self._event("response.content_part.done", **self._where(), part=part),
            self._event("response.output_item.done", output_index=self._index, item=item),
        ]
        self._pieces = None
        return told

    def _done(self, event: proto.Event) -> list[dict[str, Any]]:
        reply = event.completion
        text = whole_text(reply.parts)
        said = "".join(self._pieces or ())
        rest = text.removeprefix(said) if text.startswith(said) else ""
        told = self._more(rest)
        # The completion is what the agent said, whatever its pieces were.
        self._pieces = [text]
        self._output = [self._item("completed")]
        told += self._close("completed")
        self._usage = usage(reply.metadata, text_bytes([self._message] if self._message else ()), text)
        return [*told, self._end("completed", event)]

    def _failed(self, event: proto.Event) -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = []
        if self._pieces is not None:
            self._output = [self._item("incomplete")]
            told = self._close("incomplete")
        error = failure_of(event.failure)
        if isinstance(error, Cancelled):
            return [*told, self._end("cancelled", event)]
        self._error = {"code": error.reason, "message": error.message}
        return [*told, self._end("failed", event)]

    def _end(self, status: str, event: proto.Event) -> dict[str, Any]:
        self._status = status
        if status == "completed" and event.HasField("time"):
            self._completed_s = event.time.seconds
        return self._told(_ENDS[status])

    def _item(self, status: str) -> dict[str, Any]:
        return {
            "id": self._item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [output_text("".join(self._pieces or ()))],
        }

    @property
    def _item_id(self) -> str:
        return f"{self._place.written('msg_')}_{self._index}"

    def _where(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": self._index, "content_index": 0}

    def _told(self, kind: str) -> dict[str, Any]:
        return self._event(kind, response=self.document())

    def _event(self, kind: str, **content: Any) -> dict[str, Any]:
        number, self._number = self._number, self._number + 1
        return {"type": kind, "sequence_number": number, **content}

    def error_event(self, body: dict[str, Any]) -> dict[str, Any]:
        """The stream cannot go on."""
        return self._event("error", code=body["code"], message=body["message"], param=body["param"])


def _json(said: str | None) -> Any:
    """An option as it was given, a number or true; another surface may have written anything there."""
    try:
        value = json.loads(said) if said is not None and len(said) < _LONGEST_OPTION else None
    except ValueError:
        return None
    return value if isinstance(value, bool | int | float) and abs(value) <= _MOST else None
