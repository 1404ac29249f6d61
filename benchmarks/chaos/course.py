"""One whole run: a platform and an agent of its own, the load in another process, the kills, and what came of it."""

import asyncio
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.chaos import load, verdict
from benchmarks.chaos.outcome import Outcome
from benchmarks.chaos.readiness import Readiness
from benchmarks.chaos.stage import Plan, Stage
from benchmarks.platform import Platform, platform
from benchmarks.table import Grid, Table

_AGENT = Path(__file__).parent / "agent"
_IMAGE, _NEXT_IMAGE = f"{load.AGENT}:1.0.0", f"{load.AGENT}:1.1.0"
# After its last call, for those that still wait for their deadline.
_LOAD_END_S = 30.0


@dataclass
class _Load:
    """The load's process."""

    process: asyncio.subprocess.Process
    result: Path
    outcome: Outcome | None = None


async def measure(plan: Plan, phases: tuple[str, ...]) -> tuple[Grid, Table]:
    """Plays the phases on a platform of its own, under load."""
    with tempfile.TemporaryDirectory(prefix="uapi-ledger-") as directory:
        generated = Path(directory, "project")
        _generate(generated)
        async with platform() as running:
            await asyncio.to_thread(_build, running, generated)
            await running.run(_IMAGE, plan.replicas)
            readiness = Readiness(running.home, load.AGENT)
            watching = asyncio.create_task(readiness.run())
            try:
                await asyncio.wait_for(readiness.until(plan.replicas), 10)
                async with _calling(running.address, generated, Path(directory, "seen.json")) as calling:
                    stage = Stage(running, readiness, plan, _NEXT_IMAGE)
                    await stage.play(phases)
            finally:
                watching.cancel()
                await asyncio.wait([watching])
            ran = verdict.executions(running.home.logs / "agents" / load.AGENT)
    assert calling.outcome is not None
    seen = verdict.Evidence(calling.outcome, stage.phases, stage.kills, ran, readiness.changes, stage.lost_workers)
    return verdict.what_clients_saw(seen), verdict.bars(seen)


def _generate(into: Path) -> None:
    """The agent's project, with the code that its proto gives."""
    shutil.copytree(_AGENT, into, ignore=shutil.ignore_patterns("__pycache__"))
    out = [f"-I{into}", f"--python_out={into}", f"--grpc_python_out={into}"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *out, "ledger.proto"], check=True)


def _build(running: Platform, project: Path) -> None:
    """Both images; they differ in their version."""
    manifest = project / "agent.yaml"
    running.agent("build", str(project), "-t", _IMAGE)
    manifest.write_text(manifest.read_text().replace("version: 1.0.0", "version: 1.1.0"))
    running.agent("build", str(project), "-t", _NEXT_IMAGE)


@asynccontextmanager
async def _calling(address: str, generated: Path, result: Path) -> AsyncIterator[_Load]:
    """Runs the load; what it saw is there afterwards."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.chaos.load", address, str(generated), str(result),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    running = _Load(process, result)
    try:
        if await asyncio.wait_for(process.stdout.readline(), 30) != b"started\n":
            raise SystemExit("the load did not start")
        yield running
        process.stdin.close()
        if await asyncio.wait_for(process.wait(), _LOAD_END_S) != 0:
            raise SystemExit("the load failed")
        running.outcome = load.read(result)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
