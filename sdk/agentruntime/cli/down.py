"""`agent down`."""

import asyncio
import fcntl
import os
import shutil
import signal
import time

from agentruntime import errors, processes, supervisor
from agentruntime.cli import output
from agentruntime.home import Home
from agentruntime.listening import Listen

_TIMEOUT_S = supervisor.LONGEST_STOP_S + 5.0
_POLL_S = 0.05


def command(format_: output.Output = None) -> None:
    """Stop the platform and every agent on it.

    Calls in flight finish first. Agents that ran start again with the next `agent up`. Where no platform runs,
    nothing happens.
    """
    home = Home.default()
    with output.progress("waiting for calls in flight and for workers to end"):
        stopped = stop(home)
        remove_run(home)
    if output.wants_json(format_):
        output.print_json({"stopped": stopped})
    else:
        print("the platform has stopped" if stopped else "no platform runs on this machine")


def stop(home: Home) -> bool:
    """Ends the supervisor with all it runs, or what a dead supervisor left; False if there was nothing.

    Raises:
        DeadlineExceeded: it does not end.
        FailedPrecondition: another command starts or ends it.
    """
    if not supervisor.is_running(home):
        return asyncio.run(_end_remains(home))
    record = supervisor.read_record(home)
    deadline = time.monotonic() + _TIMEOUT_S
    while not record and supervisor.is_running(home):
        # It has only just taken its lock.
        _wait(deadline)
        record = supervisor.read_record(home)
    if record and processes.alive(record["pid"], record["start_time"]):
        os.kill(record["pid"], signal.SIGTERM)
        while processes.alive(record["pid"], record["start_time"]):
            _wait(deadline)
    return True


async def _end_remains(home: Home) -> bool:
    """Ends all that a supervisor which was killed has left; False if there was nothing."""
    record = supervisor.read_record(home)
    if not record:
        return False
    with supervisor.lock_file(home).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errors.FailedPrecondition(
                f"another command starts or ends the platform of {home.root}; try again"
            ) from None
        # After a restart of the machine nothing is left.
        if same_boot := record.get("boot_id") == supervisor.boot_id():
            ended = supervisor.end_left_overs(record)
            specs = supervisor.children_of(home, Listen.of(record))
            await supervisor.Supervisor(home, Listen(), specs).end_orphans(except_of=ended)
        home.supervisor_file.unlink(missing_ok=True)
    return same_boot


def remove_run(home: Home) -> None:
    """Removes a run directory that lies elsewhere, where nobody would look for it, if nothing lives there."""
    if home.run.parent == home.root or not home.run.exists():
        return
    with supervisor.lock_file(home).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # somebody starts the platform again
        if not any(path.is_socket() and supervisor.accepts(path) for path in home.run.rglob("*")):
            shutil.rmtree(home.run)


def _wait(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise errors.DeadlineExceeded(f"the platform does not end; look at the logs in {Home.default().logs}")
    time.sleep(_POLL_S)
