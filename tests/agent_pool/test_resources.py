"""Merging of sources, and what no worker can live with."""

import pytest
from agentruntime import errors
from agentruntime.sections import ResourcesSection

from agent_pool.resources import Requested, Resources, resolve

MB = 10**6


def test_defaults() -> None:
    assert resolve(Requested()) == Resources(20, 64 * MB, None, 512 * MB, 0, 256, frozenset())


@pytest.mark.parametrize(
    ("requested", "reserved", "cap"),
    [
        (Requested(memory_bytes=2000 * MB), 2000 * MB, 2000 * MB),
        (Requested(memory_limit_bytes=1000 * MB), 64 * MB, 1000 * MB),
        (Requested(memory_limit_bytes=50 * MB), 50 * MB, 50 * MB),
        (Requested(memory_bytes=100 * MB, memory_limit_bytes=1000 * MB), 100 * MB, 1000 * MB),
    ],
)
def test_memory(requested: Requested, reserved: int, cap: int) -> None:
    resolved = resolve(requested)
    assert (resolved.memory_bytes, resolved.memory_limit_bytes) == (reserved, cap)
    assert resolved.asked == {"memory"}


@pytest.mark.parametrize(
    ("requested", "reserved", "cap"),
    [
        (Requested(cpu_millis=2000), 2000, 2000),
        (Requested(cpu_limit_millis=500), 20, 500),
        (Requested(cpu_limit_millis=10), 10, 10),
        (Requested(cpu_millis=100, cpu_limit_millis=500), 100, 500),
    ],
)
def test_cpu(requested: Requested, reserved: int, cap: int) -> None:
    resolved = resolve(requested)
    assert (resolved.cpu_millis, resolved.cpu_limit_millis) == (reserved, cap)


def test_a_request_goes_over_the_manifest() -> None:
    section = ResourcesSection.model_validate({"memory": "512MB", "memory_limit": "1GB", "cpu": "0.5", "pids": 64})
    manifest = Requested.of_manifest(section)
    assert manifest.cpu_millis == 500
    merged = Requested(gpus=1, memory_limit_bytes=2000 * MB).over(manifest)
    assert merged == Requested(500, 512 * MB, None, 2000 * MB, 1, 64)


def test_a_reservation_in_the_request_drops_the_cap_in_the_manifest() -> None:
    manifest = Requested(memory_bytes=512 * MB, memory_limit_bytes=1000 * MB, cpu_limit_millis=100)
    resolved = resolve(Requested(memory_bytes=2000 * MB, cpu_millis=1000), manifest)
    assert resolved.memory_limit_bytes == 2000 * MB
    assert resolved.cpu_limit_millis == 1000


def test_only_the_caller_asks_for_a_cap() -> None:
    manifest = Requested(memory_bytes=512 * MB, memory_limit_bytes=1000 * MB, cpu_limit_millis=100, pids_limit=64)
    assert resolve(Requested(), manifest).asked == set()
    assert resolve(Requested(), manifest).memory_limit_bytes == 1000 * MB
    assert resolve(Requested(memory_bytes=600 * MB, pids_limit=32), manifest).asked == {"memory", "pids"}


@pytest.mark.parametrize(
    ("requested", "says"),
    [
        (Requested(memory_bytes=47 * MB), "below the 48MB"),
        (Requested(memory_limit_bytes=0), "below the 48MB"),
        (Requested(cpu_millis=9), "not between 0.01"),
        (Requested(cpu_limit_millis=0), "not between 0.01"),
        (Requested(cpu_millis=10**6 + 1), "and 1000"),
        (Requested(memory_bytes=100 * MB, memory_limit_bytes=60 * MB), "raise the limit"),
        (Requested(cpu_millis=100, cpu_limit_millis=60), "raise the limit"),
        (Requested(pids_limit=7), "below the 8"),
    ],
)
def test_what_is_refused(requested: Requested, says: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=says):
        resolve(requested)
