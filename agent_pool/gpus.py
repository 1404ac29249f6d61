"""The machine's GPUs, counted by NVML, and how a worker gets to see its own."""

from pathlib import Path

import pynvml

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
