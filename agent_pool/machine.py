"""How much CPU and memory this machine, or the container we are in, has to give."""

import os

import psutil

from agent_pool import gpus
from agent_pool.cgroups.detect import Mounts, own_limits
from agent_pool.ledger import Capacity


def capacity(mounts: Mounts) -> Capacity:
    """What the ledger may promise: cores and memory, within our own cgroup's limits, and GPUs."""
    cpu_millis = len(os.sched_getaffinity(0)) * 1000
    memory_bytes = int(psutil.virtual_memory().total)
    cpu_limit_millis, memory_limit_bytes = own_limits(mounts)
    if cpu_limit_millis:
        cpu_millis = min(cpu_millis, cpu_limit_millis)
    if memory_limit_bytes:
        memory_bytes = min(memory_bytes, memory_limit_bytes)
    return Capacity(cpu_millis, memory_bytes, tuple(range(gpus.count())))
