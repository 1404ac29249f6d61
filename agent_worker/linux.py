"""The few Linux system calls that Python's standard library does not have, as functions that raise OSError."""

import ctypes
import fcntl
import os
import socket
import struct

# linux/sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
# linux/mount.h
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 0x2
# linux/prctl.h
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_NAME = 15
_PR_CAPBSET_DROP = 24
# linux/capability.h: the version with two 32-bit words for each set
_CAPABILITY_VERSION_3 = 0x20080522
_MOST_CAPABILITIES = 64
# mount_setattr(2), since Linux 5.12; the number is the same on every architecture.
_SYS_MOUNT_SETATTR = 442
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY = 0x1
_MOUNT_ATTR_NOSUID = 0x2
_MOUNT_ATTR_NODEV = 0x4
_AT_FDCWD = -100
# pivot_root(2) has no wrapper in glibc; x86_64 and aarch64.
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
# seccomp(2); linux/seccomp.h
_SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_TSYNC = 1
_INSTRUCTION_BYTES = 8
# linux/sockios.h, linux/if.h
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_SIOCSIFADDR = 0x8916
_SIOCSIFNETMASK = 0x891C
_IFF_UP = 0x1
# The loopback interface is the first of every network namespace (drivers/net/loopback.c).
_LOOPBACK_INDEX = 1

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leaves namespaces for new ones; unshare(2)."""
    _check(_libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    arguments = [text.encode() or None for text in (source, target, kind)]
    _check(_libc.mount(*arguments, ctypes.c_ulong(flags), data.encode() or None), f"mount {target}")


def unmount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(target.encode(), flags), f"unmount {target}")


def bind(source: str, target: str, *, writable: bool = False, devices: bool = False) -> None:
    """Mounts a file or tree at a second place, nosuid, and read-only with everything below unless `writable`."""
    mount(source, target, flags=MS_BIND | MS_REC)
    attributes = _MOUNT_ATTR_NOSUID
    attributes |= 0 if writable else _MOUNT_ATTR_RDONLY
    attributes |= 0 if devices else _MOUNT_ATTR_NODEV
    # struct mount_attr: attr_set, attr_clr, propagation, userns_fd
    packed = struct.pack("4Q", attributes, 0, 0, 0)
    _check(
        _libc.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, target.encode(), _AT_RECURSIVE, packed, len(packed)),
        f"mount_setattr {target}",
    )


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    number = _SYS_PIVOT_ROOT[os.uname().machine]
    _check(_libc.syscall(number, new_root.encode(), put_old.encode()), "pivot_root")


def no_new_privileges() -> None:
    """No exec of this process or its children will gain privileges; prctl(2)."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl no_new_privs")


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def filter_system_calls(program: bytes) -> None:
    """From now on every system call of this process and its children passes this, and all before; seccomp(2).

    It needs `no_new_privileges`.

    Args:
        program: an array of struct sock_filter.
    """
    packed = _Program(len(program) // _INSTRUCTION_BYTES, program)
    number = _SYS_SECCOMP[os.uname().machine]
    # For all threads, or the id of one that could not be reached.
    result = _libc.syscall(number, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, ctypes.byref(packed))
    _check(result, "seccomp")
    if result > 0:
        raise OSError(0, f"seccomp: thread {result} has a filter of its own")


def dumpable() -> None:
    """Gives /proc/self back to the process after a change of uid; prctl(2)."""
    _check(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl dumpable")


def drop_bounding_set() -> None:
    """Gives up every capability for good, for this thread and its children, as far as allowed; capabilities(7)."""
    for capability in range(_MOST_CAPABILITIES):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            break  # the kernel knows no more, or CAP_SETPCAP is missing


def drop_capabilities() -> None:
    """Empties the capability sets of this thread, except for the bounding set; capabilities(7)."""
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, bytes(24)), "capset")


def name_process(name: str) -> None:
    """What `ps -o comm` shows, at most 15 bytes; prctl(2)."""
    _check(_libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0), "prctl name")


def loopback_up() -> None:
    """Brings up the loopback interface of this network namespace; netdevice(7)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh22x", b"lo", 0)
        flags = struct.unpack("16sh22x", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | _IFF_UP))


def add_loopback_address(address: str, number: int) -> None:
    """Gives the loopback interface one more IP address, and no network beside it; netdevice(7), ipv6(7).

    Args:
        address: IPv4 or IPv6.
        number: another one for each address.
    """
    if ":" in address:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as any_socket:
            # struct in6_ifreq
            packed = socket.inet_pton(socket.AF_INET6, address)
            fcntl.ioctl(any_socket, _SIOCSIFADDR, struct.pack("16sIi", packed, 128, _LOOPBACK_INDEX))
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for request, value in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, "255.255.255.255")):
            # struct ifreq with a struct sockaddr_in
            name = f"lo:{number}".encode()
            packed = struct.pack("16sHH4s16x", name, socket.AF_INET, 0, socket.inet_aton(value))
            fcntl.ioctl(any_socket, request, packed)
