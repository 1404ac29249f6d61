"""`agent down`."""

import os
import signal
import time

import psutil

from agentruntime import errors, supervisor
from agentruntime.cli import output
from agentruntime.home import Home

# The gateway's and the pool's own time to end, and a little more.
_TIMEOUT_S = 2 * supervisor.STOP_TIMEOUT_S + 5.0
_POLL_S = 0.05


def command(format_: output.Output = None) -> None:
    """Stop the platform and every agent on it.

    Calls in flight finish first. Agents that ran start again with the next `agent up`. Where no platform runs,
    nothing happens.
    """
    home = Home.default()
    with output.progress("waiting for calls in flight and for workers to end"):
        stopped = stop(home)
    if output.wants_json(format_):
        output.print_json({"stopped": stopped})
    else:
        print("the platform has stopped" if stopped else "no platform runs on this machine")


def stop(home: Home) -> bool:
    """Ends the supervisor with all it runs, or what a dead supervisor left; False if there was nothing.

    Raises:
        DeadlineExceeded: it does not end.
    """
    record = supervisor.read_record(home)
    if not supervisor.is_running(home):
        left = supervisor.end_left_overs(record)
        home.supervisor_file.unlink(missing_ok=True)
        return bool(left)
    deadline = time.monotonic() + _TIMEOUT_S
    while not record and supervisor.is_running(home):
        # It has only just taken its lock.
        _wait(deadline)
        record = supervisor.read_record(home)
    if record and supervisor.is_alive(record["pid"], record["start_time"]):
        os.kill(record["pid"], signal.SIGTERM)
        while psutil.pid_exists(record["pid"]) and supervisor.is_alive(record["pid"], record["start_time"]):
            _wait(deadline)
    return True


def _wait(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise errors.DeadlineExceeded(f"the platform does not end; look at the logs in {Home.default().logs}")
    time.sleep(_POLL_S)
