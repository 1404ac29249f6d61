import os
import subprocess
import sys
import time

from agentruntime import processes


def test_a_process_is_known_by_its_start() -> None:
    started = processes.start_time(os.getpid())
    assert processes.alive(os.getpid(), started)
    assert not processes.alive(os.getpid(), started + 1)
    assert not processes.alive(os.getpid(), 0.0)
    assert 0 <= processes.age_s(started) < time.clock_gettime(time.CLOCK_BOOTTIME)


def test_one_that_has_ended_is_not_alive_even_before_it_is_reaped() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        started = processes.start_time(process.pid)
        assert processes.alive(process.pid, started)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not processes.alive(process.pid, started)
    assert not processes.alive(process.pid, started)
    assert processes.start_time(process.pid) == 0.0
