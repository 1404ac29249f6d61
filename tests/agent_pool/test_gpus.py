"""What a worker sees of GPUs."""

from pathlib import Path
from types import SimpleNamespace

import pynvml

from agent_pool import gpus
from agent_pool.drivers.base import GpuStats


class Nvml:
    """A small stand-in of NVML's interface: three GPUs, of which the second tells nothing of itself."""

    def __init__(self, *, driver: bool = True) -> None:
        self.driver = driver
        self.loaded = 0

    def nvmlInit(self) -> None:
        self.loaded += 1
        if not self.driver:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index > 2:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return index

    def nvmlDeviceGetUtilizationRates(self, device: int) -> SimpleNamespace:
        if device == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(gpu=30 + device, memory=5)

    def nvmlDeviceGetMemoryInfo(self, device: int) -> SimpleNamespace:
        return SimpleNamespace(total=80 * 10**9, free=0, used=(1 + device) * 10**9)


def test_count_is_what_nvml_says() -> None:
    assert gpus.count() >= 0


def test_environment() -> None:
    assert gpus.environment((1, 3))["CUDA_VISIBLE_DEVICES"] == "1,3"
    assert gpus.environment(())["CUDA_VISIBLE_DEVICES"] == ""


def test_devices(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert gpus.devices(False, tmp_path) == []
    assert gpus.devices(True, tmp_path) == [
        str(tmp_path / name) for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm")
    ]


def test_usage_is_of_the_gpus_that_tell_it() -> None:
    nvml = Nvml()
    assert gpus.usage((0, 1, 2, 3), nvml) == (GpuStats(0, 30.0, 10**9), GpuStats(2, 32.0, 3 * 10**9))
    assert gpus.usage((2,), nvml) == (GpuStats(2, 32.0, 3 * 10**9),)
    assert nvml.loaded == 1


def test_without_gpus_or_a_driver_there_is_no_usage() -> None:
    nvml = Nvml(driver=False)
    assert gpus.usage((), nvml) == ()
    assert nvml.loaded == 0
    assert gpus.usage((0,), nvml) == ()


def test_the_stand_in_has_nvmls_own_names() -> None:
    assert all(callable(getattr(pynvml, name)) for name in vars(Nvml) if name.startswith("nvml"))
