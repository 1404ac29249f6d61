"""`agent monitor`."""

import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

import typer

from agentruntime import errors, units
from agentruntime.cli import figures, output, platform, screen
from agentruntime.cli.figures import Snapshot, Target
from agentruntime.cli.metrics import Json
from agentruntime.client.sync import Client

_SHORTEST_S, _LONGEST_S = 0.1, 3600.0
# A platform that says nothing for so long is said to; a part of it that died is back sooner.
_ANSWER_WITHIN_S = 5.0
_LOOK_S = 0.25
# What passes by itself: the pool or the gateway is started again.
_PASSING = (errors.Unavailable, errors.DeadlineExceeded)
# What happens: one of these. A look is one at the workers, or what kept it from being had.
_LOOKED, _RESIZED, _STOPPED = object(), object(), object()


def command(
    name: Annotated[str, typer.Argument(help="An agent, with all its workers and their sum, or one worker.")],
    metrics: Annotated[str, typer.Option(help="Which, with commas between.")] = ",".join(screen.METRICS),
    interval: Annotated[str, typer.Option(help="Time between two looks, like 1s or 500ms.")] = "1s",
    json_: Json = False,
    format_: output.Output = None,
) -> None:
    """Follow what an agent's workers use, until Ctrl-C.

    Redrawn in place on a terminal; elsewhere a line for each look, with --output json a JSON object a line.
    """
    chosen, interval_s = _metrics(metrics), _interval_s(interval)
    as_json = json_ or output.wants_json(format_)
    with platform.connect() as client, _events(client, figures.find(client, name), interval_s) as events:
        if as_json:
            _print(events, lambda snapshot: output.print_json_line(snapshot.data()))
        elif sys.stdout.isatty():
            _draw(events, chosen)
        else:
            _print(events, lambda snapshot: print(screen.plain(snapshot, chosen), flush=True))


def _metrics(text: str) -> list[str]:
    chosen = list(dict.fromkeys(each for each in text.lower().replace(" ", "").split(",") if each))
    unknown = [each for each in chosen if each not in screen.METRICS]
    if unknown or not chosen:
        what = f"there is no '{unknown[0]}'" if unknown else "none is named"
        raise errors.InvalidArgument(f"--metrics: {what}; write some of {','.join(screen.METRICS)}")
    return chosen


def _interval_s(text: str) -> float:
    interval_s = units.parse_duration(text)
    if not _SHORTEST_S <= interval_s <= _LONGEST_S:
        raise errors.InvalidArgument(f"--interval: {text} is not between 100ms and 1h")
    return interval_s


@contextmanager
def _events(client: Client, target: Target, interval_s: float) -> Iterator[Iterator[object]]:
    """What happens, as it comes, until somebody interrupts.

    The looks are made in a thread: an interrupt must not come in the middle of a call, or of a picture.
    """
    happened: queue.SimpleQueue[object] = queue.SimpleQueue()
    # The newest look, until it is shown: where nobody reads what is printed, no more of them wait.
    looks: deque[object] = deque(maxlen=1)
    showing = threading.Lock()
    over = threading.Event()

    def looked(look: object) -> None:
        with showing:
            if not looks:
                happened.put(_LOOKED)
            looks.append(look)

    def watch() -> None:
        due_s = time.monotonic()
        while not over.is_set():
            try:
                looked(figures.look(client, target, timeout_s=max(_ANSWER_WITHIN_S, interval_s)))
            except errors.AgentError as error:
                looked(error)
            # What took long is not caught up with.
            due_s = max(due_s + interval_s, time.monotonic())
            over.wait(due_s - time.monotonic())

    def events() -> Iterator[object]:
        while True:
            # A signal that another thread is given does not end the wait.
            with suppress(queue.Empty):
                if (event := happened.get(timeout=_LOOK_S)) is _STOPPED:
                    return
                if event is _LOOKED:
                    with showing:
                        event = looks.pop()
                yield event

    def interrupted(number: int, _: object) -> None:
        happened.put(_STOPPED)
        # A second one ends what the first one cannot, like a wait for somebody to read what is printed.
        signal.signal(number, signal.SIG_DFL)

    # A signal's handler may put something there while something is taken out.
    before = {
        number: signal.signal(number, handler)
        for number, handler in (
            (signal.SIGINT, interrupted),
            (signal.SIGTERM, interrupted),
            (signal.SIGHUP, interrupted),
            (signal.SIGWINCH, lambda *_: happened.put(_RESIZED)),
        )
    }
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield events()
    finally:
        over.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def _print(events: Iterator[object], show: Callable[[Snapshot], None]) -> None:
    history = screen.History()
    said = ""
    for event in events:
        if isinstance(event, Snapshot):
            show(history.add(event))
            said = ""
        elif isinstance(event, errors.AgentError) and (trouble := _trouble(event)) != said:
            output.note(trouble)
            said = trouble


def _draw(events: Iterator[object], chosen: list[str]) -> None:
    from rich.console import Console  # noqa: PLC0415 — because it costs 80 ms that the other ways can do without
    from rich.live import Live  # noqa: PLC0415 — because of the same
    from rich.text import Text  # noqa: PLC0415 — because of the same

    console = Console(highlight=False)
    levels = screen.BLOCKS if console.encoding.startswith("utf") else screen.ASCII
    history = screen.History()
    trouble = ""

    def picture() -> Text:
        size = console.size
        drawn = screen.lines(history, chosen, size.width, size.height, trouble=trouble, levels=levels)
        text = Text("\n".join(drawn), no_wrap=True)
        text.stylize("bold", 0, len(drawn[0]) if drawn else 0)
        return text

    with Live(picture(), console=console, screen=True, auto_refresh=False) as live:
        for event in events:
            if isinstance(event, Snapshot):
                history.add(event)
                trouble = ""
            elif isinstance(event, errors.AgentError):
                trouble = _trouble(event)
            live.update(picture(), refresh=True)


def _trouble(error: errors.AgentError) -> str:
    """What is wrong, where that passes by itself; else raises it."""
    if isinstance(error, _PASSING):
        return f"no answer, trying on: {error.message}"
    raise error
