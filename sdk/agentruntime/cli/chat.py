"""`agent chat`."""

import math
import secrets
import signal
import string
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Annotated, Any

import typer

from agentruntime import errors
from agentruntime.cli import output, platform, transcript
from agentruntime.client import messages
from agentruntime.client.conversations import Conversation, ResponseHandle

_HOW = "Ctrl-C cancels what runs, Ctrl-D leaves"
_ADJECTIVES = (
    "amber brave brisk calm clear coral early fair fleet gentle golden green happy hazel keen light lively loyal "
    "lucky mellow merry nimble noble patient quick quiet rapid silver steady sunny swift warm"
)
_ANIMALS = (
    "badger beaver bison crane deer dove eagle falcon ferret finch fox gecko hare heron ibex jay koala lark lynx "
    "marten mole moose newt otter owl panda puffin raven robin seal stork swan"
)


def command(
    agent: Annotated[str, typer.Argument(help="An agent that holds conversations.")],
    *,
    conversation: Annotated[
        str | None, typer.Option(metavar="ID", help="Go on with this one, or begin it; a new one by default.")
    ] = None,
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="Say this, print the reply, and leave.")] = None,
    format_: output.Output = None,
) -> None:
    """Talk with an agent, in a conversation that is kept.

    On a terminal it shows what was said before, and prints replies as they come; Ctrl-C cancels the message that
    runs, twice or Ctrl-D leaves. From a pipe each line is a message. With --output json each event is a line.
    """
    as_json = output.wants_json(format_)
    with platform.connect() as client:
        talk = _Talk(
            client.conversation(agent, readable_id() if conversation is None else conversation),
            transcript.Printer(live=sys.stdout.isatty(), as_json=as_json),
            new=conversation is None,
        )
        if message is not None:
            talk.say(_text(message))
        elif sys.stdin.isatty():
            talk.go_on(as_json=as_json)
        else:
            talk.say_lines()


def readable_id() -> str:
    """An id that can be read out, and that one caller does not come upon twice: one of 34 thousand millions."""
    tail = "".join(secrets.choice(string.ascii_lowercase[:24] + "23456789") for _ in range(5))
    return f"{secrets.choice(_ADJECTIVES.split())}-{secrets.choice(_ANIMALS.split())}-{tail}"


class _Leave(KeyboardInterrupt):
    """The second Ctrl-C."""


class _Talk:
    """One command's share of a conversation."""

    def __init__(self, conversation: Conversation, printer: transcript.Printer, *, new: bool) -> None:
        self._conversation = conversation
        self._printer = printer
        self._announces = new

    def say(self, text: str) -> None:
        """Sends a message and prints its reply.

        Raises:
            AgentError: the agent could not, or would not.
            KeyboardInterrupt: it was cancelled by Ctrl-C.
        """
        message_id = messages.new_id()
        try:
            handle = self._conversation.send(text, message_id=message_id, timeout_s=math.inf)
        except KeyboardInterrupt:
            # It may be there already, and would run.
            with suppress(errors.NotFound):
                self._conversation.response(message_id).cancel()
            raise
        if self._announces:
            self._announce()
        self._follow(handle)

    def say_lines(self) -> None:
        """Sends each line of stdin, once the one before was answered."""
        said = False
        for line in sys.stdin:
            if line.strip():
                self.say(_text(line.rstrip("\r\n")))
                said = True
        if not said:
            raise errors.InvalidArgument('stdin has no message; write one on a line, or give it with --message "…"')

    def go_on(self, *, as_json: bool) -> None:
        """Shows what was said, then sends what is typed until Ctrl-D."""
        # It wakes the agent meanwhile, and says at once if there is none.
        said = self._show_past(as_json=as_json)
        output.note(f"conversation {self._conversation.id} with {self._conversation.actor.type_name}; {_HOW}")
        self._announces = False
        try:
            for text in _typed(as_json=as_json):
                with _told():
                    said = True
                    self.say(_text(text))
        finally:
            if said:
                self._announce()

    def _show_past(self, *, as_json: bool) -> bool:
        """Whether there was any; what runs still is followed to its end."""
        try:
            found = self._conversation.get()
        except errors.ConversationNotFound:
            return False
        for event in self._conversation.watch(max(found.first_sequence, 1) - 1):
            if as_json:
                self._printer.show(event)
            elif line := transcript.said(event):
                role, text = line
                print(output.harmless(text if role == "assistant" else f"> {text}"))
        for info in found.messages:
            with _told():
                self._follow(self._conversation.response(info.message_id, timeout_s=math.inf))
        return True

    def _follow(self, handle: ResponseHandle) -> None:
        with _cancelled_by_ctrl_c(handle) as interrupted:
            try:
                for event in handle.watch_updates():
                    self._printer.show(event)
            finally:
                self._printer.end_line()
            try:
                handle.get_response()
            except errors.Cancelled:
                if interrupted():
                    raise KeyboardInterrupt from None
                raise
            except errors.AgentError as error:
                # Only who may operate the agent gets it.
                if traceback := error.metadata.get("traceback"):
                    error.message += f"\n{traceback}"
                raise

    def _announce(self) -> None:
        self._announces = False
        name, conversation = self._conversation.actor.type_name, self._conversation.id
        output.note(f"go on with: agent chat {name} --conversation {conversation}")


def _typed(*, as_json: bool) -> Iterator[str]:
    """What is typed, line by line, until Ctrl-D; twice Ctrl-C leaves, too."""
    # It makes `input` edit lines and remember them.
    import readline  # noqa: F401, PLC0415 — because it changes the terminal, and only typing needs it

    to_stdout = sys.stdout.isatty() and not as_json
    interrupted = False
    while True:
        try:
            if not to_stdout:
                print("> ", end="", file=sys.stderr, flush=True)
            line = input("> " if to_stdout else "")
        except EOFError:
            output.note("")
            return
        except KeyboardInterrupt:
            output.note("")
            if interrupted:
                raise
            interrupted = True
            output.note("nothing runs; Ctrl-C again, or Ctrl-D, leaves")
            continue
        interrupted = False
        if line.strip():
            yield line


@contextmanager
def _told() -> Iterator[None]:
    """What goes wrong with one message is said, and the talk goes on."""
    try:
        yield
    except errors.AgentError as error:
        output.note(f"error: {error.message}")
    except _Leave:
        raise
    except KeyboardInterrupt:
        output.note("(cancelled)")


@contextmanager
def _cancelled_by_ctrl_c(handle: ResponseHandle) -> Iterator[Any]:
    """While a message runs the first Ctrl-C cancels it, and the second one leaves.

    Yields what says whether there was one.
    """
    # A signal's handler may meet the thread anywhere: it only asks another one. Putting is reentrant.
    asked: SimpleQueue[bool] = SimpleQueue()
    times = 0

    def interrupt(_number: int, _frame: Any) -> None:
        nonlocal times
        times += 1
        if times > 1:
            raise _Leave
        asked.put(True)

    def cancel() -> None:
        if not asked.get():
            return
        try:
            handle.cancel()
        except errors.AgentError as error:
            output.note(f"it could not be cancelled: {error.message}; Ctrl-C again leaves it running")

    thread = threading.Thread(target=cancel, name="cancel", daemon=True)
    thread.start()
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield lambda: times > 0
    finally:
        signal.signal(signal.SIGINT, before)
        asked.put(False)


def _text(text: str) -> str:
    """A message's text.

    Raises:
        InvalidArgument: there is none, or it is no text.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise errors.InvalidArgument("the message is not UTF-8; convert it to UTF-8 first") from None
    if not text.strip():
        raise errors.InvalidArgument('the message is empty; give one: agent chat AGENT --message "…"')
    return text
