"""The filters do what their table says, to the last number; the profile for Docker says the same."""

import errno
import struct

import pytest
from agentruntime import seccomp, syscalls

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOWED = 0
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET, CLONE_THREAD = 0x20000, 0x10000000, 0x40000000, 0x10000


def verdict(program: bytes, machine: str, number: int, *arguments: int) -> int:
    """What the filter makes of a system call, as the kernel would run it: 0 if it passes, else an error number."""
    data = struct.pack("=iIQ6Q", number, AUDIT_ARCH[machine], 0, *(*arguments, *[0] * 6)[:6])
    code = list(struct.iter_unpack("=HBBI", program))
    accumulator, at = 0, 0
    while True:
        operation, if_true, if_false, value = code[at]
        at += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, value)
            case 0x54:
                accumulator &= value
            case 0x05:
                at += value
            case 0x15:
                at += if_true if accumulator == value else if_false
            case 0x35:
                at += if_true if accumulator >= value else if_false
            case 0x06:
                return ALLOWED if value == 0x7FFF0000 else value & 0xFFFF
            case _:
                raise AssertionError(operation)


def judge(profile: seccomp.Profile, name: str, *arguments: int) -> int:
    number = syscalls.number(name, "x86_64")
    assert number is not None
    program = seccomp.program(profile, machine="x86_64")
    return verdict(program, "x86_64", number, *arguments)


@pytest.mark.parametrize("machine", syscalls.MACHINES)
def test_each_number_is_judged_as_its_group_is(machine: str) -> None:
    checked = {"clone", "socket", "socketpair", "mknod", "mknodat", "clone3"}
    # To make workers.
    checked |= {"unshare", "mount", "setresuid", "setresgid", "capset"}
    named = {}
    for group, default, restricted in (
        (syscalls.ORDINARY, ALLOWED, ALLOWED),
        (syscalls.UNUSUAL, ALLOWED, errno.EPERM),
        (syscalls.DANGEROUS, errno.EPERM, errno.EPERM),
    ):
        for name in group:
            number = syscalls.number(name, machine)
            if number is not None:
                assert number not in named, name
                named[number] = None if name in checked else (default, restricted)
    programs = [seccomp.program(profile, machine=machine) for profile in ("default", "restricted")]
    for number in [*range(600), 2**30, 2**30 + 1, 2**31, 2**31 - 1]:
        wanted = named.get(number, (errno.ENOSYS, errno.ENOSYS))
        if wanted is not None and number < 2**31:
            assert tuple(verdict(program, machine, number) for program in programs) == wanted, number


def test_what_arguments_decide() -> None:
    for profile in ("default", "restricted"):
        assert judge(profile, "clone", CLONE_THREAD) == ALLOWED
        for flag in (CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET):
            assert judge(profile, "clone", CLONE_THREAD | flag) == errno.EPERM
        assert judge(profile, "clone3") == errno.ENOSYS
        assert [judge(profile, "socket", family) for family in (1, 2, 10, 16)] == [ALLOWED] * 4
        assert {judge(profile, "socket", family) for family in (0, 17, 38, 40, 44)} == {errno.EPERM}
        # What the kernel reads of an int are its low 32 bits.
        assert judge(profile, "socket", 2**32 + 17) == errno.EPERM
        assert judge(profile, "mknod", 0, 0o10600) == judge(profile, "mknodat", 0, 0, 0o600) == ALLOWED
        assert judge(profile, "mknod", 0, 0o20600) == judge(profile, "mknodat", 0, 0, 0o60600) == errno.EPERM


def test_a_template_makes_workers_and_no_more() -> None:
    for profile in ("default", "restricted"):
        for name in ("setresuid", "setresgid", "capset"):
            assert judge(profile, name) == ALLOWED
        assert judge(profile, "unshare", CLONE_NEWNS | CLONE_NEWNET) == ALLOWED
        assert judge(profile, "unshare", CLONE_NEWUSER) == errno.EPERM
        assert judge(profile, "mount", 0, 0, 0, 0x6) == ALLOWED
        for flags in (0x1000, 0x1020, 0x20, 0x2000, 0):  # bind, bind and remount, remount, move, with devices
            assert judge(profile, "mount", 0, 0, 0, flags) == errno.EPERM
        assert judge(profile, "umount2") == errno.EPERM


def test_another_architectures_calls_do_not_exist() -> None:
    program = seccomp.program("default", machine="aarch64")
    assert verdict(program, "aarch64", 63) == ALLOWED
    assert verdict(program, "x86_64", 63) == errno.ENOSYS


@pytest.mark.parametrize(("machine", "why"), [("x86_64", ""), ("riscv64", "not of riscv64")])
def test_where_there_is_none(machine: str, why: str) -> None:
    assert seccomp.missing(machine).endswith(why)


def test_dockers_profile_says_the_same() -> None:
    profile = seccomp.docker_profile("restricted")
    allowed: set[str] = set()
    refused: set[str] = set()
    for rule in profile["syscalls"]:
        (allowed if rule["action"] == "SCMP_ACT_ALLOW" else refused).update(rule["names"])
    assert allowed == set(syscalls.ORDINARY)
    assert refused == {*syscalls.UNUSUAL, *syscalls.DANGEROUS}
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    [families] = [
        [condition["valueTwo"] for condition in (rule["args"][0] for rule in group)]
        for group in [[rule for rule in profile["syscalls"] if rule["names"] == ["socket"]]]
    ]
    assert families == [1, 2, 10, 16]
