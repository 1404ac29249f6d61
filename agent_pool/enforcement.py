"""What happens to limits that this machine cannot enforce: a default degrades, one that was asked for is refused."""

from collections.abc import Iterable, Mapping

from agentruntime import errors

from agent_pool.drivers.base import Enforcement
from agent_pool.resources import Resources


def notes(enforcement: Iterable[Enforcement], resources: Resources, *, allow_unenforced: bool) -> list[str]:
    """What of a worker's caps is not enforced here, a sentence each.

    Raises:
        NotEnforceable: somebody asked for a cap that is not, and did not allow that.
    """
    by_name = {entry.what: entry for entry in enforcement}
    limits: Mapping[str, object] = {
        "memory": resources.memory_limit_bytes,
        "cpu": resources.cpu_limit_millis,
        "pids": resources.pids_limit,
    }
    found = []
    for what, limit in limits.items():
        entry = by_name.get(what)
        if limit is None or (entry and entry.enforced):
            continue
        why = entry.detail if entry else "the driver has no such limit"
        if what in resources.asked:
            refuse(f"a {what} limit", why, allow_unenforced=allow_unenforced)
        found.append(f"no {what} limit is enforced: {why}")
    return found


def refuse(what: str, why: str, *, allow_unenforced: bool) -> None:
    """Raises NotEnforceable, unless the caller allows what was asked for to be unenforced."""
    if not allow_unenforced:
        raise errors.NotEnforceable(
            f"{what} was asked for and cannot be enforced on this machine: {why}; "
            "leave it out, or allow it with --allow-unenforced"
        )
