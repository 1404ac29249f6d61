"""What a run of `make chaos` shows: pure functions of what the clients saw, what was killed, and what ran."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median

from benchmarks.chaos.outcome import Call, Kill, Outcome, Phase
from benchmarks.chaos.readiness import longest_without
from benchmarks.table import Grid, Table

_UNAVAILABLE = "UNAVAILABLE"
_RAN = re.compile(rb"^ran (\S+)$", re.MULTILINE)
_KINDS = {
    ("plain", True): "plain, idempotent",
    ("sdk", True): "SDK, idempotent",
    ("plain", False): "plain, not idempotent",
    ("sdk", False): "SDK, not idempotent",
}


def executions(logs: Path) -> dict[str, list[str]]:
    """Of each call's id, the workers that wrote it down, once for each time.

    Args:
        logs: the directory of an agent's logs, with the parts that were rotated away.
    """
    ran: dict[str, list[str]] = defaultdict(list)
    for path in sorted(logs.iterdir()):
        for found in _RAN.findall(path.read_bytes()):
            ran[found.decode()].append(path.name.partition(".")[0])
    return ran


def excused(call: Call, kills: Iterable[Kill], envoy: Phase | None, ran: Mapping[str, list[str]]) -> bool:
    """Whether a call that may not be repeated was one that a kill could not but cut.

    It was in flight while a worker died, and on no other worker; or it went through the Envoy that was killed.
    """
    if envoy is not None and envoy.has(call.began_at):
        return True
    died = {
        kill.name
        for kill in kills
        if kill.what == "worker" and call.began_at <= kill.gone_at and call.ended_at >= kill.at
    }
    return bool(died) and set(ran.get(call.call_id, ())) <= died


def bars(outcome: Outcome, phases: list[Phase], kills: list[Kill], ran: Mapping[str, list[str]]) -> Table:
    """Counts that must all be 0."""
    envoy = next((phase for phase in phases if phase.name == "envoy"), None)
    failed = [call for call in outcome.calls if call.failed]
    appends = [call for call in outcome.calls if not call.idempotent]
    cut = [call for call in failed if not call.idempotent]
    table = Table("chaos: bars", "Calls, of which there must be none.")
    table.add(
        "plain client, idempotent: failed, but through the killed Envoy",
        sum(1 for c in failed if c.client == "plain" and c.idempotent and not (envoy and envoy.has(c.began_at))),
        "calls",
        0,
    )
    table.add("SDK, idempotent: failed", sum(1 for c in failed if c.client == "sdk" and c.idempotent), "calls", 0)
    table.add(
        "not idempotent: failed, neither in flight on a killed worker nor through the killed Envoy",
        sum(1 for c in cut if not excused(c, kills, envoy, ran)),
        "calls",
        0,
    )
    table.add("not idempotent: failed, not as UNAVAILABLE", sum(1 for c in cut if c.code != _UNAVAILABLE), "calls", 0)
    table.add(
        "not idempotent: failed at the SDK without a reason",
        sum(1 for c in cut if c.client == "sdk" and c.reason in ("", _UNAVAILABLE)),
        "calls",
        0,
    )
    table.add("not idempotent: ran twice", sum(1 for workers in ran.values() if len(workers) > 1), "calls", 0)
    table.add(
        "not idempotent: answered, but not written down",
        sum(1 for c in appends if not c.failed and c.call_id not in ran),
        "calls",
        0,
    )
    table.add("kills after which nothing came back", sum(1 for k in kills if k.back_at is None), "kills", 0)
    return table


def phases_grid(outcome: Outcome, phases: list[Phase], kills: list[Kill], changes: list[tuple[float, int]]) -> Grid:
    """What happened in each phase. A call belongs to the phase in which it began, a stream to that of its end."""
    grid = Grid(
        "chaos: what clients saw",
        f"{len(outcome.calls)} calls in all; {outcome.streams} streams were open at the end.",
        ["phase", "s", "kills", "calls", "failed", "slowest answer", "no worker ready", "back after", "streams cut"],
    )
    for phase in phases:
        calls = [call for call in outcome.calls if phase.has(call.began_at)]
        answered = [call.ended_at - call.began_at for call in calls if not call.failed]
        killed = [kill for kill in kills if phase.has(kill.at)]
        cuts = Counter(
            f"{cut.client} {cut.code}{f'/{cut.reason}' if cut.reason else ''}"
            for cut in outcome.cuts
            if phase.has(cut.ended_at)
        )
        grid.add(
            phase.name,
            f"{phase.ended_at - phase.began_at:.1f}",
            _counted(Counter(kill.what for kill in killed)),
            str(len(calls)),
            _failed(calls),
            f"{max(answered, default=0.0) * 1000:.0f} ms",
            f"{longest_without(changes, phase.began_at, phase.ended_at) * 1000:.0f} ms",
            _back(killed),
            _counted(cuts),
        )
    return grid


def _failed(calls: list[Call]) -> str:
    failed = Counter(
        f"{_KINDS[call.client, call.idempotent]} {call.code}{f'/{call.reason}' if call.reason else ''}"
        for call in calls
        if call.failed
    )
    return _counted(failed)


def _counted(of: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(of.items())) or "0"


def _back(kills: list[Kill]) -> str:
    """Of each kind of victim: the time to its replacement, the median and the longest if there are several."""
    by_kind: dict[str, list[float]] = defaultdict(list)
    for kill in kills:
        if kill.back_at is not None:
            by_kind[kill.what].append((kill.back_at - kill.at) * 1000)
    return ", ".join(
        f"{what} {times[0]:.0f} ms"
        if len(times) == 1
        else f"{what} p50 {median(times):.0f} ms, longest {max(times):.0f} ms"
        for what, times in by_kind.items()
    )
