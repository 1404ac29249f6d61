"""Which system calls an agent's processes may make, as a seccomp filter for them and as a profile for Docker.

Both are made of one table, `agentruntime.syscalls`: `agent_worker` installs the filter, and the pool hands the
profile to a container's engine. What a filter does not let pass fails with EPERM, or with ENOSYS where libc then does
without.
"""

import errno
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agentruntime import syscalls

# "default" takes away what only administrators and debuggers need; "restricted" leaves what Python with gRPC needs.
Profile = Literal["default", "restricted"]

# linux/seccomp.h; the low half of the result is the error number.
_RET_ALLOW = 0x7FFF0000
_RET_ERRNO = 0x00050000
# struct seccomp_data: nr, arch, instruction_pointer, args[6]; the low halves of the arguments, both being
# little-endian. Every argument that is checked is a 32-bit integer to the kernel.
_NUMBER, _ARCH, _ARGUMENTS, _ARGUMENT_BYTES = 0, 4, 16, 8
# linux/audit.h
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# linux/bpf_common.h and linux/filter.h
_LOAD, _AND, _JUMP, _JUMP_IF_EQUAL, _JUMP_IF_LEAST, _RETURN = 0x20, 0x54, 0x05, 0x15, 0x35, 0x06
_MOST_INSTRUCTIONS = 4096
# linux/sched.h: new cgroup, uts, ipc, user, pid, net, mount namespaces. CLONE_NEWTIME is no flag of clone(2).
_NEW_NAMESPACES = 0x7E020000
# What a template makes for its workers: ipc, net and mount namespaces, and file systems in memory that are
# MS_NOSUID | MS_NODEV and nothing else: no bind, no remount.
_WORKERS_NAMESPACES = 0x48020000
_SCRATCH_FLAGS = 0x6
# linux/socket.h: unix, inet, inet6, netlink (by which libc reads addresses). Not packets, kernel crypto or VMs.
_FAMILIES = (1, 2, 10, 16)
# linux/stat.h: the kinds that mknod(2) makes and that are no device: unset, pipe, file, socket.
_S_IFMT, _NO_DEVICES = 0xF000, (0, 0x1000, 0x8000, 0xC000)
_ACTIONS_AVAILABLE = Path("/proc/sys/kernel/seccomp/actions_avail")


@dataclass(frozen=True)
class _Check:
    """Passes if one of the arguments, masked, is one of the values."""

    argument: int
    mask: int
    values: tuple[int, ...]


_ANY = 0xFFFFFFFF
_CHECKS = {
    "clone": _Check(0, _NEW_NAMESPACES, (0,)),
    "socket": _Check(0, _ANY, _FAMILIES),
    "socketpair": _Check(0, _ANY, _FAMILIES),
    "mknod": _Check(1, _S_IFMT, _NO_DEVICES),
    "mknodat": _Check(2, _S_IFMT, _NO_DEVICES),
}
# What a template does beside, to make workers. They inherit its filter, and have no capability to do the same.
_TEMPLATE_CHECKS = {
    "unshare": _Check(0, _ANY & ~_WORKERS_NAMESPACES, (0,)),
    "mount": _Check(3, _ANY, (_SCRATCH_FLAGS,)),
}
_TEMPLATE_CALLS = ("setresuid", "setresgid", "capset")
# glibc makes threads and processes with clone(2) then, whose flags a filter can see.
_MISSING_CALLS = ("clone3",)

# What becomes of a call: an error number (0 to let it pass), or what its arguments are checked for.
_Verdict = int | _Check


def missing(machine: str | None = None) -> str:
    """Why no filter can be installed on this machine, or ""."""
    machine = machine or os.uname().machine
    if machine not in syscalls.MACHINES:
        return f"the platform knows the system calls of {' and '.join(syscalls.MACHINES)}, not of {machine}"
    if not _ACTIONS_AVAILABLE.exists():
        return "this kernel has no seccomp filters (CONFIG_SECCOMP_FILTER)"
    return ""


def program(profile: Profile, *, machine: str | None = None) -> bytes:
    """An array of struct sock_filter, for seccomp(2): the filter of an image template and its workers.

    It also lets pass what a template needs to make workers: namespaces of the kinds that they have, file systems in
    memory, a change of uid.

    Args:
        profile: which.
        machine: as of uname(2); by default this one.
    """
    machine = machine or os.uname().machine
    verdicts: dict[int, _Verdict] = {}
    for name, verdict in _verdicts(profile, template=True).items():
        number = syscalls.number(name, machine)
        if number is not None:
            verdicts[number] = verdict
    nonexistent = _errno(errno.ENOSYS)
    # Another architecture has other numbers for the same calls.
    code = [_op(_LOAD, _ARCH), _op(_JUMP_IF_EQUAL, _AUDIT_ARCH[machine], 1, 0), nonexistent, _op(_LOAD, _NUMBER)]
    code += _search(_ranges(verdicts))
    assert len(code) <= _MOST_INSTRUCTIONS
    return b"".join(code)


def docker_profile(profile: Profile = "restricted") -> dict[str, Any]:
    """A seccomp profile as Docker takes it: `security_opt=["seccomp=" + json.dumps(docker_profile())]`."""
    rules: list[dict[str, Any]] = []
    by_errno: dict[int, list[str]] = {}
    for name, verdict in _verdicts(profile, template=False).items():
        if isinstance(verdict, int):
            by_errno.setdefault(verdict, []).append(name)
            continue
        for value in verdict.values:
            condition = {"index": verdict.argument, "value": verdict.mask, "valueTwo": value}
            rules.append(
                {"names": [name], "action": "SCMP_ACT_ALLOW", "args": [{**condition, "op": "SCMP_CMP_MASKED_EQ"}]}
            )
    for number, names in by_errno.items():
        action = {"action": "SCMP_ACT_ERRNO", "errnoRet": number} if number else {"action": "SCMP_ACT_ALLOW"}
        rules.append({"names": names, **action})
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.EPERM,
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": []},
        ],
        "syscalls": rules,
    }


def _verdicts(profile: Profile, *, template: bool) -> Mapping[str, _Verdict]:
    """By name; what is not named does not exist."""
    allowed = {*syscalls.ORDINARY, *(syscalls.UNUSUAL if profile == "default" else ())}
    verdicts: dict[str, _Verdict] = {}
    for name in (*syscalls.ORDINARY, *syscalls.UNUSUAL, *syscalls.DANGEROUS):
        verdicts[name] = 0 if name in allowed else errno.EPERM
    verdicts |= _CHECKS
    verdicts |= dict.fromkeys(_MISSING_CALLS, errno.ENOSYS)
    if template:
        verdicts |= _TEMPLATE_CHECKS
        verdicts |= dict.fromkeys(_TEMPLATE_CALLS, 0)
    return verdicts


def _ranges(verdicts: Mapping[int, _Verdict]) -> list[tuple[int, _Verdict]]:
    """The first number of each run of calls that are treated alike; the last goes on for ever."""
    found: list[tuple[int, _Verdict]] = []
    for number in range(max(verdicts) + 2):
        verdict = verdicts.get(number, errno.ENOSYS)
        if not found or found[-1][1] != verdict:
            found.append((number, verdict))
    return found


def _search(ranges: Sequence[tuple[int, _Verdict]]) -> list[bytes]:
    """Code that finds the range of the number which is loaded, by halves, and does as it says."""
    if len(ranges) == 1:
        return _treat(ranges[0][1])
    middle = len(ranges) // 2
    below, above = _search(ranges[:middle]), _search(ranges[middle:])
    # A conditional jump goes 255 instructions far at most, an unconditional one anywhere.
    return [_op(_JUMP_IF_LEAST, ranges[middle][0], 0, 1), _op(_JUMP, len(below)), *below, *above]


def _treat(verdict: _Verdict) -> list[bytes]:
    if isinstance(verdict, int):
        return [_errno(verdict) if verdict else _op(_RETURN, _RET_ALLOW)]
    code = [_op(_LOAD, _ARGUMENTS + _ARGUMENT_BYTES * verdict.argument), _op(_AND, verdict.mask)]
    left = len(verdict.values)
    code += [_op(_JUMP_IF_EQUAL, value, left - index, 0) for index, value in enumerate(verdict.values)]
    return [*code, _errno(errno.EPERM), _op(_RETURN, _RET_ALLOW)]


def _errno(number: int) -> bytes:
    return _op(_RETURN, _RET_ERRNO | number)


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """struct sock_filter."""
    return struct.pack("=HBBI", code, if_true, if_false, value)
