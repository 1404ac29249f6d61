"""`agent metrics`."""

from typing import Annotated

import typer

from agentruntime import units
from agentruntime.cli import figures, output, platform
from agentruntime.cli.figures import Figures, Snapshot, Use

# Two tables, because one would be too wide for most terminals.
_RUNNING = ["WORKER", "STATE", "CPU", "CPU TIME", "THROTTLED", "PIDS", "RESTARTS", "LAG", "UP"]
_HOLDING = ["WORKER", "MEMORY", "PEAK", "SHARE", "RECEIVED", "SENT", "GPU"]
Json = Annotated[bool, typer.Option("--json", help="The same as --output json.")]


def command(
    name: Annotated[str, typer.Argument(help="An agent, or one of its workers.")],
    json_: Json = False,
    format_: output.Output = None,
) -> None:
    """Show what an agent's workers use: CPU, memory, network, GPUs.

    Percentages of CPU are of one core; they and network rates are those of the last few seconds. `agent monitor`
    follows them.
    """
    with platform.connect() as client:
        found = figures.look(client, figures.find(client, name), share=True)
    if json_ or output.wants_json(format_):
        output.print_json(found.data())
    elif not found.workers:
        print(figures.nothing_of(found.target.agent, found.state, found.status))
    elif len(found.workers) == 1:
        print("\n".join(sheet(found.workers[0], found)))
    else:
        _print_tables(found)
        if found.calls_in_flight is not None:
            print(f"{found.calls_in_flight} calls in flight")


def sheet(of: Figures, found: Snapshot) -> list[str]:
    """One worker's figures, a line for each thing."""
    use = of.use
    loop = "CRASH LOOP, " if of.crash_loop else ""
    if not of.pid:
        return [f"{of.worker_id}  {loop}{of.state}, no process, restarts {of.restarts}"]
    lines = [
        f"{of.worker_id}  {loop}{of.state}, up {units.format_duration(of.uptime_seconds)}, restarts {of.restarts}",
        f"CPU       {use.cpu_percent:.0f}% of a core{_of_cores(use)}; {_seconds(use.cpu_seconds)} in all, throttled "
        f"for {_seconds(use.throttled_seconds)} in {use.throttled_periods} periods",
        f"memory    {memory(use)}{_share_of_limit(use)}; peak {units.format_size(use.memory_peak_bytes)}, its own "
        f"share {_size(use.memory_share_bytes)}",
        f"pids      {_pids(use)}",
    ]
    if use.network_received_bytes is None:
        lines.append("network   not its own: it has the host's")
    else:
        received, sent = units.format_size(use.network_received_bytes), _size(use.network_sent_bytes)
        lines += [f"received  {rate(use.network_received_bytes_per_second)}; {received} in all"]
        lines += [f"sent      {rate(use.network_sent_bytes_per_second)}; {sent} in all"]
    lines += [
        f"GPU {gpu.index:<5} {gpu.utilization_percent:.0f}%, {units.format_size(gpu.memory_bytes)} of its memory"
        for gpu in use.gpus
    ]
    lines.append(f"lag       {of.lag_seconds * 1000:.0f}ms")
    if found.calls_in_flight is not None:
        whose = f", at all workers of {found.target.agent}" if found.target.worker_id else ""
        lines.append(f"calls     {found.calls_in_flight} in flight{whose}")
    return lines


def memory(use: Use) -> str:
    """ "512MB of 1GB"."""
    limit = "" if use.memory_limit_bytes is None else f" of {units.format_size(use.memory_limit_bytes)}"
    return f"{units.format_size(use.memory_bytes)}{limit}"


def gpus(use: Use) -> str:
    """ "34% 12GB": the mean of their utilization, the sum of their memory."""
    if not use.gpus:
        return "-"
    mean = sum(gpu.utilization_percent for gpu in use.gpus) / len(use.gpus)
    return f"{mean:.0f}% {units.format_size(sum(gpu.memory_bytes for gpu in use.gpus))}"


def _print_tables(found: Snapshot) -> None:
    running, holding = [], []
    for each in found.workers:
        state = "CRASH LOOP" if each.crash_loop else each.state
        if each.pid:
            ends = [
                str(each.restarts),
                f"{each.lag_seconds * 1000:.0f}ms",
                units.format_duration(each.uptime_seconds),
            ]
            running.append([each.worker_id, state, *_time_cells(each.use), *ends])
            holding.append([each.worker_id, *_space_cells(each.use)])
        else:
            running.append([each.worker_id, state, *["-"] * 4, str(each.restarts), "-", "-"])
    output.print_table(_RUNNING, [*running, ["total", "", *_time_cells(found.total), "", "", ""]])
    print()
    output.print_table(_HOLDING, [*holding, ["total", *_space_cells(found.total)]])


def _time_cells(use: Use) -> list[str]:
    return [f"{use.cpu_percent:.0f}%", _seconds(use.cpu_seconds), _seconds(use.throttled_seconds), _pids(use)]


def _space_cells(use: Use) -> list[str]:
    return [
        memory(use),
        units.format_size(use.memory_peak_bytes),
        _size(use.memory_share_bytes),
        rate(use.network_received_bytes_per_second),
        rate(use.network_sent_bytes_per_second),
        gpus(use),
    ]


def _of_cores(use: Use) -> str:
    return "" if use.cpu_limit_cores is None else f", at most {100 * use.cpu_limit_cores:.0f}%"


def _share_of_limit(use: Use) -> str:
    return f" ({100 * use.memory_bytes / use.memory_limit_bytes:.0f}%)" if use.memory_limit_bytes else ""


def _pids(use: Use) -> str:
    return str(use.pids) if use.pids_limit is None else f"{use.pids} of {use.pids_limit}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f}s" if seconds < 60 else units.format_duration(seconds)


def _size(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else units.format_size(size_bytes)


def rate(bytes_per_second: float | None) -> str:
    """ "1.2kB/s"."""
    return "-" if bytes_per_second is None else f"{units.format_size(bytes_per_second)}/s"
