"""A limit on what the processes of a control group send and receive: a BPF program in each direction.

It counts and drops what goes through the group's IP sockets, wherever it goes (loopback, too), so a worker in the
host's own network namespace is limited and nothing of the host's is touched. A packet costs the time that it takes at
the limit; what would have to wait for longer than `_PATIENCE_NS` is dropped, and TCP slows down. It needs a version 2
group, which may be in a hierarchy without any controllers, beside version 1.
"""

import ctypes
import os
import struct
from functools import cache
from pathlib import Path

# How long a packet would at most have to wait; that much can be sent at once after a pause. More than the 200 ms for
# which TCP pauses after a loss, or it would get a fraction of the limit.
_PATIENCE_NS = 300_000_000
_BITS_NS_PER_BYTE = 8 * 10**9
# bpf(2); linux/bpf.h
_SYS_BPF = {"x86_64": 321, "aarch64": 280}
_MAP_CREATE, _PROG_LOAD, _PROG_ATTACH = 0, 5, 8
_MAP_TYPE_ARRAY, _PROG_TYPE_CGROUP_SKB = 2, 8
_INGRESS, _EGRESS = 0, 1
# Besides what others attach to the group.
_ALLOW_MULTI = 2
_ATTRIBUTE_BYTES = 128
# What an egress program returns; CN tells TCP that the way is congested (include/linux/bpf-cgroup.h).
_DROP, _KEEP, _DROP_CN, _KEEP_CN = 0, 1, 2, 3
# Operations, registers and helpers of BPF: Documentation/bpf/standardization/instruction-set.rst.
_LOAD_64, _LOAD_U32, _LOAD_U64, _STORE_U32 = 0x18, 0x61, 0x79, 0x62
_MOVE, _MOVE_VALUE, _ADD_VALUE, _SUBTRACT, _MULTIPLY, _DIVIDE = 0xBF, 0xB7, 0x07, 0x1F, 0x2F, 0x3F
_CALL, _EXIT, _ATOMIC = 0x85, 0x95, 0xDB
_ATOMIC_ADD, _ATOMIC_COMPARE_AND_EXCHANGE = 0x00, 0xF1
_IF_NOT, _IF_LEAST, _IF_MORE = 0x55, 0x3D, 0x2D
_RESULT, _ARG1, _ARG2, _PACKET, _FREE_AT, _NOW, _WAIT, _STACK = 0, 1, 2, 6, 7, 8, 9, 10
_MAP_OF_DESCRIPTOR = 1
_LOOK_UP, _TIME_NS = 1, 5

_libc = ctypes.CDLL(None, use_errno=True)


@cache
def missing() -> str:
    """Why this process cannot limit a group's network, or ""."""
    if os.uname().machine not in _SYS_BPF:
        return f"the platform does not know the number of bpf(2) on {os.uname().machine}"
    try:
        for direction in (_INGRESS, _EGRESS):
            os.close(_load(direction, 10**6))
    except OSError as error:
        return f"the kernel takes no BPF program for control groups ({error.strerror}); it wants root and Linux 5.12"
    return ""


def limit(directory: Path, bits_per_s: int) -> None:
    """Limits what the processes of a group send, and what they receive.

    It holds for sockets that they make from then on, for as long as there is the group.

    Args:
        directory: of the group, version 2.
        bits_per_s: in each direction, counted in IP packets.

    Raises:
        OSError: the kernel refuses.
    """
    group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for direction in (_INGRESS, _EGRESS):
            program = _load(direction, bits_per_s)
            try:
                _bpf(_PROG_ATTACH, struct.pack("=4I", group, program, direction, _ALLOW_MULTI))
            finally:
                os.close(program)
    finally:
        os.close(group)


def _load(direction: int, bits_per_s: int) -> int:
    """The descriptor of a program. Its state, of its own, is when what was let pass is through, in nanoseconds."""
    state = _bpf(_MAP_CREATE, struct.pack("=4I", _MAP_TYPE_ARRAY, 4, 8, 1))
    try:
        code = _program(direction, bits_per_s, state)
        instructions = ctypes.create_string_buffer(code, len(code))
        license_ = ctypes.create_string_buffer(b"Dual MIT/GPL")
        attributes = struct.pack(
            "=2I2Q2IQ2I16s2I",
            _PROG_TYPE_CGROUP_SKB, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(license_),
            0, 0, 0, 0, 0, b"uapi_network", 0, direction,
        )  # fmt: skip
        return _bpf(_PROG_LOAD, attributes)
    finally:
        os.close(state)


def _program(direction: int, bits_per_s: int, state: int) -> bytes:
    """Lets a packet pass at once, or not at all."""
    wait_too_long, keep = (_DROP_CN, _KEEP_CN) if direction == _EGRESS else (_DROP, _KEEP)
    end = [_op(_MOVE_VALUE, _RESULT, value=_KEEP), _op(_EXIT)]
    late = [_op(_MOVE_VALUE, _RESULT, value=wait_too_long), _op(_EXIT)]
    busy = [_op(_MOVE_VALUE, _RESULT, value=keep), _op(_EXIT)]
    # The time that this packet takes is added to what was let pass before it.
    pay = [
        _op(_LOAD_U32, _ARG1, _PACKET),  # struct __sk_buff: len
        *_big(_ARG2, _BITS_NS_PER_BYTE),
        _op(_MULTIPLY, _ARG1, _ARG2),
        *_big(_ARG2, bits_per_s),
        _op(_DIVIDE, _ARG1, _ARG2),
        _op(_ATOMIC, _FREE_AT, _ARG1, value=_ATOMIC_ADD),
        *_big(_ARG2, _PATIENCE_NS // 2),
        _op(_IF_MORE, _WAIT, _ARG2, jump=len(end)),
        *end,
        *busy,
    ]
    decide = [
        _op(_SUBTRACT, _WAIT, _NOW),
        *_big(_ARG2, _PATIENCE_NS),
        _op(_IF_MORE, _WAIT, _ARG2, jump=len(pay)),
        *pay,
        *late,
    ]
    # Nothing waits: the time of before must not count as credit. Another processor may have been quicker.
    idle = [
        _op(_MOVE, _RESULT, _WAIT),
        _op(_ATOMIC, _FREE_AT, _NOW, value=_ATOMIC_COMPARE_AND_EXCHANGE),
        _op(_MOVE, _WAIT, _NOW),
    ]
    found = [
        _op(_MOVE, _FREE_AT, _RESULT),
        _op(_CALL, value=_TIME_NS),
        _op(_MOVE, _NOW, _RESULT),
        _op(_LOAD_U64, _WAIT, _FREE_AT),
        _op(_IF_LEAST, _WAIT, _NOW, jump=len(idle)),
        *idle,
        *decide,
    ]
    return b"".join(
        [
            _op(_MOVE, _PACKET, _ARG1),
            _op(_STORE_U32, _STACK, jump=-4),
            _op(_MOVE, _ARG2, _STACK),
            _op(_ADD_VALUE, _ARG2, value=-4),
            *_big(_ARG1, state, _MAP_OF_DESCRIPTOR),
            _op(_CALL, value=_LOOK_UP),
            # There is one entry, and the verifier wants to be told.
            _op(_IF_NOT, _RESULT, jump=len(end)),
            *end,
            *found,
        ]
    )


def _big(register: int, value: int, kind: int = 0) -> list[bytes]:
    """Loads 64 bits, in two instructions."""
    return [struct.pack("=BBhI", _LOAD_64, register | kind << 4, 0, value & 0xFFFFFFFF),
            struct.pack("=BBhI", 0, 0, 0, value >> 32)]  # fmt: skip


def _op(code: int, register: int = 0, source: int = 0, *, value: int = 0, jump: int = 0) -> bytes:
    """struct bpf_insn."""
    return struct.pack("=BBhi", code, register | source << 4, jump, value)


def _bpf(command: int, attributes: bytes) -> int:
    padded = ctypes.create_string_buffer(attributes, _ATTRIBUTE_BYTES)
    result = int(_libc.syscall(_SYS_BPF[os.uname().machine], command, padded, _ATTRIBUTE_BYTES))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
