"""What happens to limits that this machine cannot enforce: a default degrades, one that was asked for is refused."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from agentruntime import errors

from agent_pool.drivers.base import Enforcement
from agent_pool.revision import Spec


@dataclass(frozen=True)
class _Wish:
    """Something that a revision is to be held to."""

    # As `Enforcement.what` has it.
    what: str
    # "a memory limit"
    called: str
    # By the caller, and not only by a default or by agent.yaml.
    asked: bool
    # Whether the deployment's notes say what of it is not enforced, or another note does.
    noted: bool = True


def notes(enforcement: Iterable[Enforcement], spec: Spec) -> list[str]:
    """What of a worker's limits and walls is not enforced here, a sentence each.

    Raises:
        NotEnforceable: somebody asked for one that is not, and did not allow that.
    """
    by_name = {entry.what: entry for entry in enforcement}
    found = []
    for wish in _wishes(spec):
        entry = by_name.get(wish.what)
        if entry and entry.enforced:
            continue
        why = entry.detail if entry else "the driver has no such limit"
        if wish.asked:
            _refuse(spec, wish.called, why)
        if wish.noted:
            found.append(f"{wish.called.replace('a ', 'no ', 1)} is enforced: {why}")
    if spec.mode == "native" and spec.asked.isolation.read_only_root is False:
        found.append("a native worker always sees a read-only file system; it can write to /tmp")
    return found


def check_sandbox(spec: Spec, degraded: Sequence[str]) -> None:
    """Of a revision that was loaded, and could not be isolated for the reasons in `degraded`, if there are any.

    Raises:
        NotEnforceable: somebody asked for what only isolation gives, and did not allow to do without.
    """
    if degraded and spec.asked.network == "isolated":
        _refuse(spec, "network isolation", degraded[0])
    if degraded and spec.asked.isolation.read_only_root:
        _refuse(spec, "a read-only root", degraded[0])


def _wishes(spec: Spec) -> Iterator[_Wish]:
    resources, isolation, asked = spec.resources, spec.isolation, spec.asked.isolation
    limits = {
        "memory": resources.memory_limit_bytes,
        "cpu": resources.cpu_limit_millis,
        "pids": resources.pids_limit,
    }
    for what, limit in limits.items():
        if limit is not None:
            yield _Wish(what, f"a {what} limit", what in resources.asked)
    if isolation.security_context == "restricted":
        yield _Wish("seccomp", "a restricted security context", asked.security_context is not None)
    if isolation.read_only_root:
        yield _Wish("filesystem", "a read-only root", bool(asked.read_only_root), noted=False)
    # A worker with no network but its own loopback has nothing to be limited.
    if isolation.network_limit_bps and spec.network == "host":
        yield _Wish("network_limit", "a network limit", asked.network_limit_bps is not None)


def _refuse(spec: Spec, what: str, why: str) -> None:
    """Raises NotEnforceable, unless the caller allows what was asked for to be unenforced."""
    if not spec.allow_unenforced:
        raise errors.NotEnforceable(
            f"{what} was asked for and cannot be enforced on this machine: {why}; "
            "leave it out, or allow it with --allow-unenforced"
        )
