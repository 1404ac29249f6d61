"""Ways out of a worker, as Python that raises OSError (or another error) where a wall holds.

Each is run twice: by an isolated worker, and by a plain process of this machine, for which it must succeed. What
stands in braces is filled in by `cells.Cell.fill`.
"""

from dataclasses import dataclass

# Calls what the standard library has no function for; raises as it would.
_SYSTEM_CALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def system_call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
"""
# So that what succeeds changes nothing of this machine's.
_ASIDE = """
import ctypes
assert not ctypes.CDLL(None).unshare(0x20000)
assert not ctypes.CDLL(None).mount(b"none", b"/", None, 0x44000, None)
"""
_UNPRIVILEGED = "import os, subprocess, time; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"


@dataclass(frozen=True)
class Attempt:
    """One of them."""

    name: str
    code: str
    # Run before it outside only, to keep what succeeds there from doing harm, or to begin without privileges.
    outside_first: str = ""


def _numbered(name: str, x86_64: int, aarch64: int, arguments: str) -> Attempt:
    code = (
        _SYSTEM_CALL + f'system_call({{"x86_64": {x86_64}, "aarch64": {aarch64}}}[os.uname().machine], {arguments})'
    )
    return Attempt(name, code.replace("{", "{{").replace("}", "}}"))


NETWORK = [
    Attempt(
        "tcp to the host",
        "import socket; assert socket.create_connection(('127.0.0.1', {tcp_port}), 2).recv(5) == b'hello'",
    ),
    Attempt(
        "udp to the host",
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2)\n"
        "s.sendto(b'x', ('127.0.0.1', {udp_port})); assert s.recv(5) == b'hello'",
    ),
    Attempt(
        "an abstract socket of the host",
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect('\\0{abstract}')",
    ),
    Attempt(
        "tcp to the host over ipv6",
        "import socket; assert socket.create_connection(('::1', {tcp6_port}), 2).recv(5) == b'hello'",
    ),
    Attempt(
        "tcp to another address of the host",
        "import socket; assert socket.create_connection(('127.9.9.9', {any_port}), 2).recv(5) == b'hello'",
    ),
    Attempt(
        "icmp",
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP); s.settimeout(2)\n"
        "s.sendto(bytes.fromhex('0800f7ff00000000'), ('127.0.0.1', 0)); s.recv(100)",
    ),
    Attempt("raw packets", "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)"),
]
NEIGHBOURS = [
    Attempt(
        "a sibling's socket",
        "import os, socket; s = socket.socket(socket.AF_UNIX)\n"
        "inner = '/run/agent/{sibling_slot}/s'\n"
        "s.connect(inner if os.path.lexists('/run/agent') else {sibling_socket!r})",
    ),
    Attempt("another agent's socket", "import socket; socket.socket(socket.AF_UNIX).connect({neighbour_socket!r})"),
    Attempt("the pool's socket", "import socket; socket.socket(socket.AF_UNIX).connect({pool_socket!r})"),
    Attempt("another agent's files", "assert 'Tester' in open({neighbour_file!r}).read()"),
    Attempt("the pool's state", "open({state!r}, 'rb').read()"),
    Attempt("a sibling's environment", "assert open('/proc/{sibling_pid}/environ').read()"),
    Attempt("a sibling's memory", "open('/proc/{sibling_pid}/mem', 'rb')"),
    Attempt("a sibling's files", "import os; os.listdir('/proc/{sibling_pid}/root/tmp')"),
    Attempt("a signal to a sibling", "import os; os.kill({sibling_pid}, 0)"),
    Attempt("a signal to the pool", "import os; os.kill({pool_pid}, 0)"),
    Attempt(
        "a trace of a sibling",
        _SYSTEM_CALL.replace("{", "{{").replace("}", "}}")
        + "libc.ptrace.restype = ctypes.c_long\n"
        + "if libc.ptrace(0x4206, {sibling_pid}, 0, 0):\n    raise OSError(ctypes.get_errno(), 'ptrace')\n"
        + "libc.ptrace(17, {sibling_pid}, 0, 0)",
    ),
    Attempt(
        "a sibling's descriptors",
        _SYSTEM_CALL.replace("{", "{{").replace("}", "}}") + "system_call(438, os.pidfd_open({sibling_pid}), 1, 0)",
    ),
]
FILES = [
    Attempt("a file of the host", "assert open({secret!r}).read() == 's3cret'"),
    Attempt("the shadow file", "open('/etc/shadow').read()"),
    Attempt("writing to the root", "import os; open('/usr/{unique}', 'x').close(); os.unlink('/usr/{unique}')"),
    Attempt(
        "a root that can be written after a remount",
        "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"
        "if libc.mount(b'none', b'/', None, 0x1020, None):\n    raise OSError(ctypes.get_errno(), 'mount')\n"
        "import os; open('/usr/{unique}', 'x').close(); os.unlink('/usr/{unique}')",
        outside_first=_ASIDE,
    ),
    Attempt(
        "a mount",
        "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"
        "if libc.mount(b'none', b'/tmp', b'tmpfs', 0, None):\n    raise OSError(ctypes.get_errno(), 'mount')",
        outside_first=_ASIDE,
    ),
    Attempt(
        "a device",
        "import os, stat, tempfile\n"
        "with tempfile.TemporaryDirectory() as directory:\n"
        "    os.mknod(directory + '/null', 0o600 | stat.S_IFCHR, os.makedev(1, 3))",
    ),
    Attempt("another root", "import os; os.chroot('/tmp')"),
]
PRIVILEGES = [
    Attempt("root", "import os; os.setuid(0); assert os.getuid() == 0"),
    Attempt(
        "a setuid program",
        "import os, subprocess, time\n"
        "paths = ('/agent/app/rise', '/usr/local/bin/rise', {setuid_program!r})\n"
        "path = next(path for path in paths if os.path.exists(path))\n"
        "process = subprocess.Popen([path, '60'])\n"
        "try:\n"
        "    while open(f'/proc/{{process.pid}}/comm').read().strip() != 'rise':\n"
        "        time.sleep(0.01)\n"
        "    status = open(f'/proc/{{process.pid}}/status').read()\n"
        "    if status.split('Uid:')[1].split()[1] != {root_uid!r}:\n"
        "        raise PermissionError('it runs as I do')\n"
        "finally:\n"
        "    process.kill(); process.wait()",
        outside_first=_UNPRIVILEGED,
    ),
    Attempt(
        "programs that give privileges",
        "import ctypes\nif ctypes.CDLL(None).prctl(39, 0, 0, 0, 0):\n    raise PermissionError('no_new_privs')",
    ),
    Attempt("a higher priority", "import os; os.setpriority(os.PRIO_PROCESS, 0, -5)"),
    Attempt(
        "its own memory limit",
        "import os\n"
        "path = {memory_limit!r}\n"
        "for inner in ('/sys/fs/cgroup/memory/memory.limit_in_bytes', '/sys/fs/cgroup/memory.max'):\n"
        "    path = inner if os.path.exists(inner) and not os.path.exists(path) else path\n"
        "limit = open(path).read(); open(path, 'w').write(limit)",
    ),
    Attempt("leaving its group", "open({group_procs!r}, 'a').close()"),
]
KERNEL = [
    _numbered("unshare of users", 272, 97, "0x10000000"),
    _numbered("clone into a user namespace", 56, 220, "0x10000000 | 17, 0, 0, 0, 0) or os._exit(0"),
    _numbered("keyrings", 250, 219, "0, -3, 1"),
    _numbered("io_uring", 425, 425, "1, ctypes.create_string_buffer(120)"),
    _numbered("another personality", 135, 92, "0xFFFFFFFF"),
    _numbered("comparing processes", 312, 272, "os.getpid(), os.getpid(), 2, 0, 0"),
    _numbered(
        "a handle of a file",
        303,
        264,
        "-100, b'/', ctypes.pointer((ctypes.c_int * 40)(128)), ctypes.pointer(ctypes.c_int()), 0",
    ),
    _numbered(
        "performance events", 298, 241, "(ctypes.c_int * 32)(1, 128, 0, 0, 0, 0, 0, 0, 0, 0, 0x60), 0, -1, -1, 0"
    ),
    _numbered("bpf", 321, 280, "0, (ctypes.c_int * 32)(2, 4, 8, 1), 128"),
]
ALL = [*NETWORK, *NEIGHBOURS, *FILES, *PRIVILEGES, *KERNEL]
# While an agent is imported, in its template, there are capabilities that a worker does not have.
AT_IMPORT = [
    attempt
    for attempt in ALL
    if attempt.name
    in {
        "tcp to the host",
        "an abstract socket of the host",
        "another agent's socket",
        "the pool's socket",
        "another agent's files",
        "a file of the host",
        "writing to the root",
        "a root that can be written after a remount",
        "a mount",
        "a device",
        "another root",
        "unshare of users",
        "bpf",
        "keyrings",
    }
]
