"""A default degrades; what was asked for is refused, unless allowed."""

import pytest
from agentruntime import errors

from agent_pool import enforcement
from agent_pool.asked import Asked, AskedIsolation
from agent_pool.drivers.base import Enforcement
from agent_pool.resources import Requested, resolve
from agent_pool.revision import Program, Spec
from tests.agent_pool.test_state import spec

WHAT = ("memory", "cpu", "pids", "seccomp", "filesystem", "network_limit")
ALL = [Enforcement(what, True, "cgroup v2") for what in WHAT]
NONE = [Enforcement(what, False, "not here") for what in WHAT]
SILENT = AskedIsolation()


def asking(asked: Asked, *, allow: bool = False, isolation: AskedIsolation = SILENT) -> Spec:
    """A revision as somebody asks for it, of an agent whose agent.yaml says `isolation`."""
    program = Program(entrypoint="m:C", isolation=isolation)
    return spec(asked=asked, resources=resolve(asked.resources), allow_unenforced=allow, program=program)


def test_what_is_enforced_needs_no_note() -> None:
    wishes = Asked(
        resources=Requested(cpu_millis=100),
        network="host",
        isolation=AskedIsolation("restricted", read_only_root=True, network_limit_bps=10**6),
    )
    assert enforcement.notes(ALL, asking(wishes)) == []


def test_defaults_degrade() -> None:
    found = ["no memory limit is enforced: not here", "no pids limit is enforced: not here"]
    assert enforcement.notes(NONE, asking(Asked())) == found


def test_what_agent_yaml_says_degrades() -> None:
    isolation = AskedIsolation("restricted", network_limit_bps=10**6)
    found = enforcement.notes(NONE, asking(Asked(network="host"), isolation=isolation))
    assert found[2:] == [
        "no restricted security context is enforced: not here",
        "no network limit is enforced: not here",
    ]


@pytest.mark.parametrize(
    "asked",
    [
        Asked(resources=Requested(memory_bytes=10**9)),
        Asked(resources=Requested(cpu_limit_millis=100)),
        Asked(resources=Requested(pids_limit=100)),
        Asked(isolation=AskedIsolation(security_context="restricted")),
        Asked(isolation=AskedIsolation(read_only_root=True)),
        Asked(network="host", isolation=AskedIsolation(network_limit_bps=10**6)),
    ],
)
def test_wishes_are_refused(asked: Asked) -> None:
    with pytest.raises(errors.NotEnforceable, match="--allow-unenforced"):
        enforcement.notes(NONE, asking(asked))
    assert len(enforcement.notes(NONE, asking(asked, allow=True))) >= 2


def test_a_worker_without_a_network_needs_no_limit_of_it() -> None:
    asked = Asked(network="isolated", isolation=AskedIsolation(network_limit_bps=10**6))
    assert len(enforcement.notes(NONE, asking(asked))) == 2


def test_a_native_worker_says_that_it_cannot_have_a_writable_root() -> None:
    asked = Asked(isolation=AskedIsolation(read_only_root=False))
    assert "always sees a read-only" in enforcement.notes(ALL, asking(asked))[0]


@pytest.mark.parametrize("asked", [Asked(network="isolated"), Asked(isolation=AskedIsolation(read_only_root=True))])
def test_what_only_a_sandbox_gives_is_refused_without_one(asked: Asked) -> None:
    enforcement.check_sandbox(asking(asked), [])
    with pytest.raises(errors.NotEnforceable, match="no namespaces"):
        enforcement.check_sandbox(asking(asked), ["no namespaces"])
    enforcement.check_sandbox(asking(asked, allow=True), ["no namespaces"])
    enforcement.check_sandbox(asking(Asked(network="host")), ["no namespaces"])
