"""What a worker sees of GPUs."""

from pathlib import Path

from agent_pool import gpus


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
