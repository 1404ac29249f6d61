"""The picture of `agent monitor`: samples in, lines out. Knows sizes, and nothing of terminals."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from agentruntime.cli.figures import Snapshot, Use, nothing_of
from agentruntime.cli.metrics import gpus, memory, rate

BLOCKS = "▁▂▃▄▅▆▇█"
# Where a terminal does not write UTF-8.
ASCII = "_.-=+*#@"
# More than any terminal has columns to show.
_MOST_SAMPLES = 512
_GAP = 2
_SHORTEST_SPARKLINE = 4
_LONGEST_NAME = 32
_STATE = 10


@dataclass(frozen=True)
class _Column:
    """One thing that is followed."""

    title: str
    value: Callable[[Use], float | None]
    text: Callable[[Use], str]
    # What a full bar stands for; None for the highest that was seen.
    ceiling: Callable[[Use], float | None]


def _mean_utilization(use: Use) -> float | None:
    return sum(gpu.utilization_percent for gpu in use.gpus) / len(use.gpus) if use.gpus else None


_COLUMNS = {
    "cpu": [
        _Column(
            "CPU",
            lambda use: use.cpu_percent,
            lambda use: f"{use.cpu_percent:.0f}%",
            # Without a cap a core: else the noise of an idle worker would fill the line.
            lambda use: 100 * (use.cpu_limit_cores or 1),
        )
    ],
    "memory": [_Column("MEMORY", lambda use: use.memory_bytes, memory, lambda use: use.memory_limit_bytes)],
    "network": [
        _Column(
            "RECEIVED",
            lambda use: use.network_received_bytes_per_second,
            lambda use: rate(use.network_received_bytes_per_second),
            lambda _: None,
        ),
        _Column(
            "SENT",
            lambda use: use.network_sent_bytes_per_second,
            lambda use: rate(use.network_sent_bytes_per_second),
            lambda _: None,
        ),
    ],
    "gpu": [_Column("GPU", _mean_utilization, gpus, lambda _: 100.0)],
}
METRICS = tuple(_COLUMNS)


class History:
    """What was seen so far: of the workers that are there now, and of all together."""

    def __init__(self) -> None:
        self.last: Snapshot | None = None
        self._before: Snapshot | None = None
        self.total: deque[Use] = deque(maxlen=_MOST_SAMPLES)
        # By name and pid: a worker and its successor have one name.
        self.workers: dict[tuple[str, int], deque[Use]] = {}

    def add(self, snapshot: Snapshot) -> Snapshot:
        """Takes in what is newer than all before; returns it with rates since the one before."""
        before, self._before = self._before, snapshot
        self.last = snapshot.since(before)
        self.total.append(self.last.total)
        keys = [(each.worker_id, each.pid) for each in self.last.workers]
        self.workers = {key: self.workers.get(key, deque(maxlen=_MOST_SAMPLES)) for key in keys}
        for key, each in zip(keys, self.last.workers, strict=True):
            self.workers[key].append(each.use)
        return self.last


def sparkline(values: Sequence[float | None], width: int, ceiling: float | None, levels: str = BLOCKS) -> str:
    """The last `width` values as bars; blank where there was none.

    Args:
        values: the newest last.
        width: in characters.
        ceiling: what a full bar stands for; None, or less than was seen, for the highest seen.
        levels: the bars, by height.
    """
    shown = list(values)[-width:] if width > 0 else []
    top = max([ceiling or 0.0, *(value for value in shown if value is not None)])
    bars = "".join(
        " " if value is None else levels[min(int(value / top * len(levels)), len(levels) - 1) if top > 0 else 0]
        for value in shown
    )
    return bars.rjust(max(width, 0))


def plain(of: Snapshot, metrics: Iterable[str]) -> str:
    """One line, for where there is no terminal to draw on."""
    use = of.total
    said = [
        f"{column.title.lower()} {column.text(use)}"
        for metric in metrics
        for column in _COLUMNS[metric]
        if metric != "gpu" or use.gpus
    ]
    at = time.strftime("%H:%M:%S", time.localtime(of.at_s))
    if not of.workers:
        return f"{at} {of.target.name}  {_nothing(of)}"
    number = "" if of.target.worker_id else f"  workers {len(of.workers)}"
    return f"{at} {of.target.name}{number}  {'  '.join(said)}"


def lines(
    history: History, metrics: Iterable[str], width: int, height: int, *, trouble: str = "", levels: str = BLOCKS
) -> list[str]:
    """The picture, at most so wide and high.

    Args:
        history: what was seen.
        metrics: of `METRICS`.
        width: in characters.
        height: in lines.
        trouble: what is wrong now, if anything.
        levels: the bars of a sparkline, by height.
    """
    last = history.last
    if last is None:
        return [(trouble or "asking the platform")[:width]][:height]
    picture = [_heading(last, trouble)]
    if not last.workers:
        picture += ["", _nothing(last)]
        return [line[:width] for line in picture][:height]
    columns = [
        column
        for metric in metrics
        for column in _COLUMNS[metric]
        # A column of an agent without GPUs would only take room.
        if metric != "gpu" or last.total.gpus
    ]
    rows: list[tuple[str, str, Sequence[Use]]] = []
    if len(last.workers) > 1:
        rows.append(("total", "", history.total))
    rows += [
        (each.worker_id, "CRASH LOOP" if each.crash_loop else each.state, history.workers[each.worker_id, each.pid])
        for each in last.workers
    ]
    room = max(height - 2, 0)
    more = len(rows) - room
    if more > 0:
        # A line says how many there is no room for.
        rows, more = rows[: max(room - 1, 0)], more + 1
    picture += _table(rows, columns, width, levels)
    if more > 0:
        picture.append(f"and {more} more")
    return [line[:width].rstrip() for line in picture][:height]


def _heading(of: Snapshot, trouble: str) -> str:
    parts = [of.target.name, time.strftime("%H:%M:%S", time.localtime(of.at_s))]
    if not of.target.worker_id:
        parts.append("1 worker" if len(of.workers) == 1 else f"{len(of.workers)} workers")
    if of.calls_in_flight is not None and not of.target.worker_id:
        parts.append(f"{of.calls_in_flight} calls in flight")
    return "  ".join([*parts, trouble or of.status or "Ctrl-C ends this"])


def _nothing(of: Snapshot) -> str:
    if of.target.worker_id and of.state not in ("ASLEEP", "STOPPED"):
        return f"there is no worker {of.target.worker_id} now"
    return nothing_of(of.target.agent, of.state, of.status)


def _table(
    rows: Sequence[tuple[str, str, Sequence[Use]]], columns: Sequence[_Column], width: int, levels: str
) -> list[str]:
    names = min(max(len(name) for name, _, _ in [("WORKER", "", ()), *rows]), _LONGEST_NAME)
    left = width - names - _STATE - _GAP
    cell = left // max(len(columns), 1) - _GAP
    out = ["WORKER".ljust(names) + " " * _GAP + "STATE".ljust(_STATE)]
    out += [name[:names].ljust(names) + " " * _GAP + state.ljust(_STATE) for name, state, _ in rows]
    for column in columns:
        texts = [column.text(uses[-1]) for _, _, uses in rows]
        text_width = max(map(len, [column.title, *texts]))
        bars = cell - text_width - 1
        out[0] += " " * _GAP + column.title.ljust(max(cell, text_width))
        for number, (text, (_, _, uses)) in enumerate(zip(texts, rows, strict=True), start=1):
            drawn = ""
            if bars >= _SHORTEST_SPARKLINE:
                values = [column.value(use) for use in uses]
                drawn = " " + sparkline(values, bars, column.ceiling(uses[-1]), levels)
            out[number] += " " * _GAP + (text.rjust(text_width) + drawn).ljust(max(cell, text_width))
    return out
