"""What an agent's processes can see and reach: namespaces, a file system view, an unprivileged uid.

The image template is put in here before it imports a line of the agent's; its workers inherit the view and then
leave its network and IPC namespaces, and its uid, for their own. Limits on memory, CPU and pids are the cgroup's,
which the pool made.

A pool that is root maps a range of otherwise unused host uids, one for each worker, so that the workers of an
agent cannot signal, trace or read each other. Any other pool can map its own uid only.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import cast

from agentruntime import egress, seccomp
from agentruntime.launch import (
    EVENT_LOG,
    KERNEL_DIR,
    SANDBOX_WORKERS_DIR,
    SYSTEM_CALLS,
    UIDS_PER_AGENT,
    SandboxSpec,
)
from agentruntime.sealed import MOST_BYTES
from agentruntime.secrets import DIRECTORY as SECRETS_DIR

from agent_worker import linux

# Where the agent's bundle is seen.
BUNDLE = "/agent"
_OLD_ROOT = "/.old-root"
# Programs and libraries. Symbolic links (a merged /usr) stay links.
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
# What libc, TLS and time zones read; nothing else of /etc is there.
_ETC = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "ssl/certs", "localtime", "nsswitch.conf",
        "passwd", "group", "protocols", "services")  # fmt: skip
_ETC_NETWORK = ("hosts", "resolv.conf")
# Of a worker with ways out: names are looked up in its own file, and nowhere else; nsswitch.conf(5).
_NSSWITCH = "passwd: files\ngroup: files\nprotocols: files\nservices: files\nhosts: files\n"
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


class Unenforceable(Exception):
    """This kernel, or these privileges, do not allow the sandbox; says what was refused."""


def enter(spec: SandboxSpec, bundle: str, request_id_map: Callable[[], None]) -> None:
    """Moves this single-threaded process into the sandbox of its agent.

    Args:
        spec: what to see and reach.
        bundle: host path of the unpacked image, seen as `BUNDLE` from then on.
        request_id_map: asks the process outside to write `id_map` for this one, and returns when it has.

    Raises:
        Unenforceable: nothing that matters has been changed then, but the process must end.
    """
    try:
        if spec.uid_base:
            linux.unshare(linux.CLONE_NEWNS)
            _build_view(spec, bundle)
            linux.unshare(linux.CLONE_NEWUSER | _own_namespaces(spec))
            request_id_map()
            os.setgroups([])
        else:
            uid, gid = os.geteuid(), os.getegid()
            linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS | _own_namespaces(spec))
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
            Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
            _build_view(spec, bundle)
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        linux.dumpable()
        linux.no_new_privileges()
        if not spec.host_network:
            linux.loopback_up()
    except OSError as error:
        raise Unenforceable(str(error)) from error


def confine(spec: SandboxSpec) -> None:
    """Takes from this single-threaded process, and its workers, the system calls that neither of them needs.

    After `enter`, which needs more, and before any code of the agent's.

    Raises:
        OSError: the kernel refuses; the process must end.
    """
    linux.no_new_privileges()
    if spec.system_calls != "any":
        linux.filter_system_calls(seccomp.program(cast(seccomp.Profile, spec.system_calls)))


def id_map(spec: SandboxSpec) -> str:
    """The content of uid_map and gid_map, user_namespaces(7)."""
    return f"0 {spec.uid_base} {UIDS_PER_AGENT}"


def separate(spec: SandboxSpec, slot: int) -> None:
    """Moves a freshly forked process out of the namespaces that it shares with its template.

    Args:
        spec: of its template.
        slot: the worker's, for which it makes the place of its secrets.

    Raises:
        OSError: the kernel refuses; the process must end.
    """
    if not spec.isolated:
        return
    linux.unshare(_own_namespaces(spec) | linux.CLONE_NEWNS)
    _mount_scratch()
    if spec.secrets:
        # Its own in this mount namespace only: neither the template nor another worker sees what is written there.
        owner = slot if spec.uid_base else 0
        options = f"mode=0700,uid={owner},gid={owner},size={2 * MOST_BYTES},nr_inodes=1k"
        linux.mount("tmpfs", str(SECRETS_DIR), "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, options)
    if not spec.host_network:
        linux.loopback_up()


def become_worker(spec: SandboxSpec, slot: int) -> None:
    """Takes on a worker's own uid, where the pool may give one, and gives up every capability.

    Raises:
        OSError: the kernel refuses; the process must end.
    """
    linux.no_new_privileges()
    linux.drop_bounding_set()  # while it still may
    if spec.isolated and spec.uid_base:
        os.setresgid(slot, slot, slot)
        os.setresuid(slot, slot, slot)
    linux.drop_capabilities()
    linux.dumpable()


def ways_out(spec: SandboxSpec) -> list[str]:
    """The entries of `permissions.egress` for which a worker is to listen: with the host's network it needs none."""
    return spec.egress if spec.isolated and not spec.host_network else []


def workers_dir(spec: SandboxSpec) -> Path:
    """Where the processes of the sandbox find the directories that hold their sockets."""
    return Path(SANDBOX_WORKERS_DIR) if spec.isolated else Path(spec.workers_dir)


def secrets_dir(spec: SandboxSpec, slot: int) -> Path:
    """Where a worker's secrets go: beside its socket if it has no view of its own."""
    return SECRETS_DIR if spec.isolated else Path(spec.workers_dir, str(slot), "secrets")


def system_calls(spec: SandboxSpec) -> str:
    """Where the processes of the sandbox find the socket for system calls; "" where there is none."""
    return _platform_socket(spec, SYSTEM_CALLS)


def event_log(spec: SandboxSpec) -> str:
    """The same of the socket for the event log of conversations."""
    return _platform_socket(spec, EVENT_LOG)


def _platform_socket(spec: SandboxSpec, name: str) -> str:
    return str(Path(KERNEL_DIR if spec.isolated else spec.kernel_dir) / name) if spec.kernel_dir else ""


def _own_namespaces(spec: SandboxSpec) -> int:
    return linux.CLONE_NEWIPC | (0 if spec.host_network else linux.CLONE_NEWNET)


def _build_view(spec: SandboxSpec, bundle: str) -> None:
    """Makes a tmpfs the root, with only what a worker needs bound into it.

    pivot_root comes first, onto a tmpfs over /tmp: what the host has below /tmp is then to be found below the
    old root, which is let go at the end.
    """
    python_paths = _python_paths()
    # Followed now, while links lead where they mean to.
    bundle, workers = os.path.realpath(bundle), os.path.realpath(spec.workers_dir)
    kernel = os.path.realpath(spec.kernel_dir) if spec.kernel_dir else ""
    network_files = {f"/etc/{name}": os.path.realpath(f"/etc/{name}") for name in _ETC_NETWORK if spec.host_network}
    linux.mount("none", "/", flags=linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("tmpfs", "/tmp", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0755,size=1m")  # noqa: S108 — a mount point
    Path(f"/tmp{_OLD_ROOT}").mkdir()  # noqa: S108 — as above
    linux.pivot_root("/tmp", f"/tmp{_OLD_ROOT}")  # noqa: S108 — as above
    os.chdir("/")
    if entries := ways_out(spec):
        Path("/etc").mkdir()
        Path("/etc/hosts").write_text(egress.hosts_file(entries))
        Path("/etc/nsswitch.conf").write_text(_NSSWITCH)
    for path in (*_SYSTEM, *(f"/etc/{name}" for name in _ETC), *python_paths, *spec.read_only_paths):
        _show(path)
    for target, path in network_files.items():
        _show(path, target)
    _show(bundle, BUNDLE)
    _show(workers, str(SANDBOX_WORKERS_DIR), writable=True)
    if kernel:
        _show(kernel, str(KERNEL_DIR))
    for device in (*(f"/dev/{name}" for name in _DEVICES), *spec.devices):
        _show(device, devices=True)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        Path(f"/dev/{name}").symlink_to(f"/proc/self/fd/{number}")
    Path("/dev/fd").symlink_to("/proc/self/fd")
    for scratch in _scratch():
        Path(scratch).mkdir(parents=True)
    if spec.secrets:
        SECRETS_DIR.mkdir(parents=True)
    _mount_scratch()
    _mount_proc()
    linux.unmount(_OLD_ROOT, linux.MNT_DETACH)
    Path(_OLD_ROOT).rmdir()
    linux.mount("none", "/", flags=linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | linux.MS_NOSUID)
    for path in (BUNDLE, str(SANDBOX_WORKERS_DIR)):
        if not Path(path).is_dir():
            raise OSError(0, f"{path} could not be made visible")


def _mount_scratch() -> None:
    """Empty file systems in memory, for a process and its children; each worker has its own.

    What is written there is charged to the writer's cgroup, and goes with the last process that sees it.
    """
    for scratch in _scratch():
        linux.mount("tmpfs", scratch, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=1777,size=50%")


@lru_cache
def _scratch() -> tuple[str, str]:
    """Where workers may write. An installation below /tmp would be hidden by an empty one; then it is /var/tmp."""
    hidden = any(Path(path).is_relative_to("/tmp") for path in _python_paths())  # noqa: S108 — a mount point
    return "/var/tmp" if hidden else "/tmp", "/dev/shm"  # noqa: S108 — as above


def _mount_proc() -> None:
    """A /proc in which only the agent's own processes show; where only root may mount one, the host's."""
    Path("/proc").mkdir()
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    try:
        linux.mount("proc", "/proc", "proc", flags, "hidepid=invisible")
    except OSError:
        linux.bind(f"{_OLD_ROOT}/proc", "/proc")


def _show(path: str, target: str = "", *, writable: bool = False, devices: bool = False) -> None:
    """Binds a host path into the view at `target`, or at its own place; what the host lacks is left out."""
    source, goal = Path(_OLD_ROOT + path), Path(target or path)
    if source.is_symlink():
        if not goal.exists():
            goal.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                goal.symlink_to(source.readlink())
        return
    if not source.exists() or (goal.exists() and not target):
        return  # seen already, as part of what was shown before
    if source.is_dir():
        goal.mkdir(parents=True, exist_ok=True)
    else:
        goal.parent.mkdir(parents=True, exist_ok=True)
        goal.touch()
    linux.bind(str(source), str(goal), writable=writable, devices=devices)


def _python_paths() -> list[str]:
    """Directories that hold this Python, its packages and the platform's own, none inside another."""
    found = {Path(prefix) for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix)}
    found |= {Path(os.path.realpath(sys.executable)).parent}
    # An editable install puts a checkout on sys.path: of such a directory, only the platform's packages.
    for name in ("agentruntime", "agent_worker"):
        found |= {Path(location) for location in sys.modules[name].__path__}
    resolved = sorted({path.resolve() for path in found} | found, key=lambda path: len(path.parts))
    outermost: list[Path] = []
    for path in resolved:
        if path.is_dir() and not any(path.is_relative_to(other) for other in (*outermost, Path("/usr"))):
            outermost.append(path)
    return [str(path) for path in outermost]
