"""What was said in a conversation, as text for people."""

import json
import sys
from collections.abc import Iterable

from agentruntime import units
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.cli import output
from agentruntime.client import messages
from agentruntime.conversation import ChatMessage, Part, RequestStatus


def readable(parts: Iterable[Part]) -> str:
    """Texts as they are; of what is no text, what it is."""
    return "".join(map(_readable, parts))


def _readable(part: Part) -> str:
    if part.text is not None:
        return part.text
    if part.url is not None:
        return f"[{part.name or part.url}{f': {part.url}' if part.name else ''}]"
    if part.blob is not None:
        about = [part.name, part.media_type, units.format_size(len(part.blob))]
        return f"[{', '.join(each for each in about if each)}]"
    return json.dumps(part.data, ensure_ascii=False)


def text_of(message: proto.ChatMessage) -> str:
    """A message as text."""
    return readable(ChatMessage.of_proto(message).parts)


def said(event: proto.Event) -> tuple[str, str] | None:
    """Who said what by an event: a role and a text; None if it says nothing, or only a piece of what comes whole."""
    match event.WhichOneof("content"):
        case "message":
            return event.message.role or "user", text_of(event.message)
        case "earlier":
            return event.earlier.role or "user", text_of(event.earlier)
        case "completion":
            return "assistant", text_of(event.completion)
        case "failure":
            return "assistant", ended_badly(event)
    return None


def detail(event: proto.Event) -> str:
    """What an event says, on one line."""
    match event.WhichOneof("content"):
        case "attempt":
            text = f"{event.attempt.number} by {event.attempt.worker_id}"
        case "chunk":
            text = readable([Part.of_proto(event.chunk)])
        case "tool_call":
            data = output.as_data(event.tool_call)
            about = {key: data[key] for key in ("arguments", "result", "error") if data.get(key) not in (None, "")}
            text = f"{event.tool_call.name} {json.dumps(about, ensure_ascii=False)}"
        case "state":
            text = f"version {event.state.version}"
        case "failure":
            text = f"{event.failure.reason}: {event.failure.message}"
        case _:
            text = line[1] if (line := said(event)) else ""
    return " ".join(text.split())


def ended_badly(event: proto.Event) -> str:
    """A remark on how a message failed."""
    if messages.status_by([event]) is RequestStatus.CANCELLED:
        return "(cancelled)"
    return f"(failed: {event.failure.message})"


def time_of(event: proto.Event) -> str:
    """UTC, to the second."""
    return event.time.ToDatetime().strftime("%Y-%m-%d %H:%M:%S")


class Printer:
    """Prints a message's events as they come.

    Args:
        live: pieces as soon as they are there; else the reply once it is whole.
        as_json: each event as JSON, in a line.
    """

    def __init__(self, *, live: bool, as_json: bool) -> None:
        self._live = live and not as_json
        self._as_json = as_json
        # Of the reply, what is printed already.
        self._printed = ""
        self._line_begins = True
        self._begun = False

    def show(self, event: proto.Event) -> None:
        """Prints what an event brings."""
        if self._as_json:
            output.print_json_line(output.as_data(event))
            return
        match event.WhichOneof("content"):
            case "message":
                self._printed = ""
                self._begun = False
            case "attempt":
                if self._begun:
                    self._remark("(begun again: its worker has ended)")
                self._printed = ""
                self._begun = True
            case "chunk" if self._live:
                self._write(readable([Part.of_proto(event.chunk)]))
            case "tool_call" if self._live and not (event.tool_call.HasField("result") or event.tool_call.error):
                self._remark(output.harmless(f"({event.tool_call.name} …)"))
            case "completion":
                text = text_of(event.completion)
                # An agent that returns its reply sends no pieces of it.
                if text.startswith(self._printed):
                    self._write(text.removeprefix(self._printed))
                self.end_line()
            case "failure":
                self.end_line()

    def end_line(self) -> None:
        """Begins a new line, unless it has begun."""
        if not self._line_begins:
            print(flush=True)
        self._line_begins = True

    def _remark(self, text: str) -> None:
        self.end_line()
        output.note(text)

    def _write(self, text: str) -> None:
        if text:
            self._printed += text
            self._line_begins = text.endswith("\n")
            sys.stdout.write(output.harmless(text) if self._live else text)
            sys.stdout.flush()
