"""The machine's GPUs, counted and measured by NVML, and how a worker gets to see its own."""

import functools
from pathlib import Path
from typing import Any

import pynvml

from agent_pool.drivers.base import GpuStats

# Besides its own /dev/nvidiaN a process needs these (NVIDIA container toolkit's list), where they exist.
_SHARED_DEVICES = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")


def count() -> int:
    """How many GPUs NVML sees; 0 without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        return int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()


def usage(indices: tuple[int, ...], nvml: Any = pynvml) -> tuple[GpuStats, ...]:
    """What is done with these GPUs; those that NVML says nothing of are left out. Fast but for the first time.

    Args:
        indices: as NVML counts.
        nvml: the library's interface.
    """
    if not indices or not _ready(nvml):
        return ()
    found = []
    for index in indices:
        try:
            device = nvml.nvmlDeviceGetHandleByIndex(index)
            utilization = nvml.nvmlDeviceGetUtilizationRates(device)
            memory = nvml.nvmlDeviceGetMemoryInfo(device)
        except pynvml.NVMLError:  # it fell off the bus, or is cut in parts (MIG), of which NVML tells no utilization
            continue
        found.append(GpuStats(index, float(utilization.gpu), int(memory.used)))
    return tuple(found)


@functools.cache
def _ready(nvml: Any) -> bool:
    """Loads the driver's library, once: that takes longer than all that is asked of it later."""
    try:
        nvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    return True


def environment(gpus: tuple[int, ...]) -> dict[str, str]:
    """What tells CUDA which GPUs are its own; with none leased, that none is."""
    return {
        # Indices in the order that NVML uses, too.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(str(gpu) for gpu in gpus),
    }


def devices(wanted: bool, directory: Path = Path("/dev")) -> list[str]:
    """Device nodes that a template of an agent with GPUs must see: all of them, since leases come later."""
    if not wanted:
        return []
    numbered = sorted(path for path in directory.glob("nvidia*") if path.name.removeprefix("nvidia").isdigit())
    shared = [directory / name for name in _SHARED_DEVICES]
    return [str(path) for path in (*numbered, *shared) if path.exists()]
