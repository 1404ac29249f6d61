"""The picture of `agent monitor`, as text: what was seen, in any size of a terminal."""

import re
from dataclasses import replace

import pytest
from agentruntime.cli import screen
from agentruntime.cli.figures import Snapshot, Target, figures
from agentruntime.cli.screen import ASCII, History, lines, plain, sparkline

from tests.agentruntime.cli.figures_samples import busy_worker

EVERYTHING = list(screen.METRICS)


def look(at_s: int, *numbers: int, target: Target | None = None, busy: float = 1.0, gpus: int = 0) -> Snapshot:
    """Workers that have been busy since the start, each so many cores."""
    workers = []
    for number in numbers:
        of = figures(busy_worker(number, gpus=gpus), at_s, share=False)
        received = (of.use.network_received_bytes or 0) + 1000 * at_s
        use = replace(of.use, cpu_seconds=busy * at_s, network_received_bytes=received)
        workers.append(replace(of, use=use))
    return Snapshot(target or Target("busy"), float(at_s), "RUNNING", "", 4, tuple(workers))


def seen(*snapshots: Snapshot) -> History:
    history = History()
    for each in snapshots:
        history.add(each)
    return history


@pytest.mark.parametrize(
    ("values", "width", "ceiling", "bars"),
    [
        ([0, 50, 100], 3, 100, "▁▅█"),
        ([0, 50, 100], 5, 200, "  ▁▃▅"),
        ([1, 2, 3, 4], 2, None, "▇█"),
        ([0, 0], 2, None, "▁▁"),
        ([None, 5], 3, None, "  █"),
        ([300], 1, 100, "█"),
        ([], 2, None, "  "),
        ([1], 0, None, ""),
    ],
)
def test_sparkline(values: list[float | None], width: int, ceiling: float | None, bars: str) -> None:
    assert sparkline(values, width, ceiling) == bars


def test_the_picture() -> None:
    history = seen(*(look(at_s, 1, 2, busy=busy) for at_s, busy in enumerate((0.1, 0.5, 1.0, 1.0, 1.5), start=1)))
    heading, titles, total, first, second = lines(history, ["cpu", "memory"], 100, 24)
    assert re.fullmatch(r"busy  \d\d:\d\d:\d\d  2 workers  4 calls in flight  Ctrl-C ends this", heading)
    assert titles.split() == ["WORKER", "STATE", "CPU", "MEMORY"]
    assert total.split()[:2] == ["total", "700%"]
    assert first.split()[:3] == ["busy-01", "READY", "350%"]
    assert re.search(r"128MB of 512MB +▃▃▃▃▃$", first)
    assert second.split()[0] == "busy-02"


def test_columns_of_what_there_is() -> None:
    without, gpu = (lines(seen(look(1, 1, gpus=gpus)), EVERYTHING, 160, 24)[1].split() for gpus in (0, 1))
    assert without == ["WORKER", "STATE", "CPU", "MEMORY", "RECEIVED", "SENT"]
    assert gpu == [*without, "GPU"]


def test_workers_come_and_go() -> None:
    history = seen(look(1, 1, 2), look(2, 2, 3))
    picture = lines(history, ["cpu"], 80, 24)
    assert [line.split()[0] for line in picture[2:]] == ["total", "busy-02", "busy-03"]
    history.add(replace(look(3), state="ASLEEP"))
    assert lines(history, ["cpu"], 80, 24)[2] == "busy sleeps and has no process; the next call wakes it"
    history.add(look(4, 3))
    assert [line.split()[0] for line in lines(history, ["cpu"], 80, 24)[2:]] == ["busy-03"]
    gone = seen(look(5, target=Target("busy", "busy-01")))
    assert lines(gone, ["cpu"], 80, 24)[2] == "there is no worker busy-01 now"


@pytest.mark.parametrize("width", [1, 10, 40, 80, 200])
@pytest.mark.parametrize("height", [1, 2, 3, 6, 50])
def test_it_fits(width: int, height: int) -> None:
    history = seen(look(1, *range(1, 9), gpus=1), look(2, *range(1, 9), gpus=1))
    picture = lines(history, EVERYTHING, width, height)
    assert len(picture) == min(height, 11)
    assert max(map(len, picture)) <= width
    if height == 6 and width >= 40:
        assert picture[-1] == "and 6 more"


def test_what_is_wrong_is_in_the_heading() -> None:
    assert lines(History(), ["cpu"], 80, 24) == ["asking the platform"]
    assert lines(seen(look(1, 1)), ["cpu"], 80, 24, trouble="no answer")[0].endswith("  no answer")


def test_without_utf_8() -> None:
    "\n".join(lines(seen(look(1, 1), look(2, 1)), EVERYTHING, 120, 24, levels=ASCII)).encode("ascii")


def test_a_line_where_there_is_no_terminal() -> None:
    line = plain(look(1, 1, 2), EVERYTHING)
    assert line[9:] == "busy  workers 2  cpu 100%  memory 256MB of 1.02GB  received 3kB/s  sent 40B/s"
    of_one = plain(look(1, 1, gpus=1, target=Target("busy", "busy-01")), ["gpu"])
    assert of_one[9:] == "busy-01  gpu 30% 1GB"
