"""What a run of `make chaos` shows: pure functions of what the clients saw, what was killed, and what ran."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.chaos.outcome import PLAIN, SDK, Call, Kill, Outcome, Phase
from benchmarks.chaos.readiness import longest_without
from benchmarks.table import Grid, Table

_UNAVAILABLE = "UNAVAILABLE"
_RAN = re.compile(rb"^ran (\S+) (\d+)$", re.MULTILINE)
# What a gRPC client lets pass by default before it connects again: 1 s, ±20 %
# (https://github.com/grpc/grpc/blob/master/doc/connection-backoff.md). Until then its calls fail in itself.
_RECONNECT_S = 1.3


@dataclass(frozen=True)
class Evidence:
    """All of one run."""

    outcome: Outcome
    phases: list[Phase]
    kills: list[Kill]
    # Of each call that was written down, the pids of the workers that did, once for each time.
    ran: Mapping[str, list[int]]
    # When, and how many workers were ready from then on.
    ready: list[tuple[float, int]]
    # That a new pool did not take over although they had not ended.
    lost_workers: int


def executions(logs: Path) -> dict[str, list[int]]:
    """Reads `Evidence.ran` from the logs of an agent's workers, with the parts that were rotated away."""
    ran: dict[str, list[int]] = defaultdict(list)
    for path in sorted(logs.iterdir()):
        for call_id, pid in _RAN.findall(path.read_bytes()):
            ran[call_id.decode()].append(int(pid))
    return ran


def through_envoy(call: Call, kills: Iterable[Kill]) -> bool:
    """Whether a call was in flight when Envoy was killed, or began before its client could connect to the next."""
    return any(
        call.ended_at >= kill.at and call.began_at <= (kill.back_at or kill.gone_at) + _RECONNECT_S
        for kill in kills
        if kill.what == "envoy"
    )


def on_killed_worker(call: Call, kills: Iterable[Kill], ran: Mapping[str, list[int]]) -> bool:
    """Whether a call was in flight while a worker died, and ran on no other; perhaps on none."""
    died = {
        kill.pid
        for kill in kills
        if kill.what == "worker" and call.began_at <= kill.gone_at and call.ended_at >= kill.at
    }
    return bool(died) and died.issuperset(ran.get(call.call_id, ()))


def bars(seen: Evidence) -> Table:
    """Counts that must all be 0, and one without a bar."""
    calls, kills, ran = seen.outcome.calls, seen.kills, seen.ran
    failed = [call for call in calls if call.failed]
    cut = [call for call in failed if not call.idempotent]
    counts = {
        "idempotent, plain client: failed, not through the killed Envoy": sum(
            call.client == PLAIN and call.idempotent and not through_envoy(call, kills) for call in failed
        ),
        "idempotent, SDK: failed": sum(call.client == SDK and call.idempotent for call in failed),
        "not idempotent: failed, neither on a killed worker nor through the killed Envoy": sum(
            not through_envoy(call, kills) and not on_killed_worker(call, kills, ran) for call in cut
        ),
        "not idempotent: failed, not as UNAVAILABLE": sum(call.code != _UNAVAILABLE for call in cut),
        # Without one the SDK gives the code's name.
        "not idempotent, SDK: failed without a reason": sum(
            call.client == SDK and call.reason in ("", call.code) for call in cut
        ),
        "not idempotent: ran twice": sum(len(workers) > 1 for workers in ran.values()),
        "not idempotent: answered, but not written down": sum(
            not call.idempotent and not call.failed and call.call_id not in ran for call in calls
        ),
        # At a plain client the status alone can be seen.
        "streams of drained workers, ended otherwise than UNAVAILABLE, at the SDK WORKER_DRAINED": sum(
            cut.code != _UNAVAILABLE or (cut.client == SDK and cut.reason != "WORKER_DRAINED")
            for cut in seen.outcome.cuts
            for phase in seen.phases
            if phase.name == "update" and phase.has(cut.ended_at)
        ),
        "killed, and not back": sum(kill.back_at is None for kill in kills),
        "alive, and not taken over by the new pool": seen.lost_workers,
    }
    table = Table("chaos: bars", "Of calls, streams, kills and workers; where there is a bar, there must be none.")
    for what, count in counts.items():
        table.add(what, count, "", 0)
    # Its worker died before the handler began, which nobody can know; or it was lost for another reason.
    nowhere = sum(call.call_id not in ran and on_killed_worker(call, kills, ran) for call in cut)
    table.add("not idempotent: failed while a worker died, and ran nowhere", nowhere, "")
    return table


def what_clients_saw(seen: Evidence) -> Grid:
    """A row a phase. A call belongs to the phase in which it began, a stream to that of its end."""
    outcome = seen.outcome
    written = sum(map(len, seen.ran.values()))
    grid = Grid(
        "chaos: what clients saw",
        f"{len(outcome.calls)} calls, of which {written} wrote their id down; {outcome.streams} streams open at the "
        "end. Without a ready worker: the longest time. Back: from the kill to the replacement's being ready.",
        ["phase", "s", "killed", "calls", "failed", "slowest answer", "without a worker", "back", "streams cut"],
    )
    for phase in seen.phases:
        calls = [call for call in outcome.calls if phase.has(call.began_at)]
        slowest = max((call.ended_at - call.began_at for call in calls if not call.failed), default=0.0)
        killed = [kill for kill in seen.kills if phase.has(kill.at)]
        without = longest_without(seen.ready, phase.began_at, phase.ended_at)
        grid.add(
            phase.name,
            f"{phase.ended_at - phase.began_at:.1f}",
            _counted(kill.what for kill in killed),
            str(len(calls)),
            _counted(_failure(call) for call in calls if call.failed),
            f"{slowest * 1000:.0f} ms",
            f"{without * 1000:.0f} ms",
            _back(killed),
            _counted(_told(cut.client, cut.code, cut.reason) for cut in outcome.cuts if phase.has(cut.ended_at)),
        )
    return grid


def _failure(call: Call) -> str:
    kind = "idempotent" if call.idempotent else "not idempotent"
    return f"{kind} {_told(call.client, call.code, call.reason)}"


def _told(client: str, code: str, reason: str) -> str:
    return f"{client}: {code}" + (f"/{reason}" if reason else "")


def _counted(of: Iterable[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(Counter(of).items())) or "none"


def _back(kills: list[Kill]) -> str:
    """Of each kind of victim: the time to its replacement, the median and the longest if there are several."""
    by_kind: dict[str, list[float]] = defaultdict(list)
    for kill in kills:
        if kill.back_at is not None:
            by_kind[kill.what].append((kill.back_at - kill.at) * 1000)
    return ", ".join(
        f"{what} {median(times):.0f} ms" + (f" (p50; longest {max(times):.0f})" if len(times) > 1 else "")
        for what, times in by_kind.items()
    )
