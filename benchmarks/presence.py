"""Which processes there are of a platform and of an agent, by what the kernel says, and the memory that they take."""

from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.platform import Platform


@dataclass(frozen=True)
class Presence:
    """The processes of one agent, by pid."""

    # At most one for each revision.
    templates: set[int]
    # Workers and spares: what their templates have forked.
    forked: set[int]


def everything(running: Platform) -> list[psutil.Process]:
    """All processes of a platform: its supervisor, and what descends from that."""
    supervisor = psutil.Process(running.pids["supervisor"])
    return [supervisor, *supervisor.children(recursive=True)]


def of_agent(running: Platform, agent: str) -> Presence:
    """The processes that write to a log of the agent's; all of its do, and no other's."""
    logs = f"{running.home.logs / 'agents' / agent}/"
    parents: dict[int, int] = {}
    for process in everything(running):
        try:
            if any(str(each.readlink()).startswith(logs) for each in Path(f"/proc/{process.pid}/fd").iterdir()):
                parents[process.pid] = process.ppid()
        except (FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):
            continue  # it has ended
    forked = {pid for pid, parent in parents.items() if parent in parents}
    return Presence(set(parents) - forked, forked)


def smaps(pid: int) -> dict[str, int]:
    """Bytes by kind, of the whole process; proc(5)."""
    sizes = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        key, value = line.split(":")
        sizes[key] = int(value.split()[0]) * 1024
    return sizes
