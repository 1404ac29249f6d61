"""A default degrades; what was asked for is refused, unless allowed."""

import pytest
from agentruntime import errors

from agent_pool import enforcement
from agent_pool.drivers.base import Enforcement
from agent_pool.resources import Requested, resolve

ALL = [Enforcement(what, True, "cgroup v2") for what in ("memory", "cpu", "pids")]
NONE = [Enforcement(what, False, "no groups") for what in ("memory", "cpu", "pids")]


def test_what_is_enforced_needs_no_note() -> None:
    assert enforcement.notes(ALL, resolve(Requested(cpu_millis=100)), allow_unenforced=False) == []


def test_defaults_degrade() -> None:
    assert enforcement.notes(NONE, resolve(Requested()), allow_unenforced=False) == [
        "no memory limit is enforced: no groups",
        "no pids limit is enforced: no groups",
    ]


@pytest.mark.parametrize(
    "requested", [Requested(memory_bytes=10**9), Requested(cpu_limit_millis=100), Requested(pids_limit=100)]
)
def test_wishes_are_refused(requested: Requested) -> None:
    resources = resolve(requested)
    with pytest.raises(errors.NotEnforceable, match="--allow-unenforced"):
        enforcement.notes(NONE, resources, allow_unenforced=False)
    assert len(enforcement.notes(NONE, resources, allow_unenforced=True)) >= 2
