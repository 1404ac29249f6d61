"""What the pool and an agent's processes say to each other: the only contract between them besides the protos.

Three kinds of process, each forked from the one before it:

- a **base** per Python environment, started by the pool as `python -m agent_worker.template --listen-fd N`;
- an **image template** per image revision, forked by a base on `load`;
- a **worker**, forked by an image template on `fork`.

Base and image template are driven over a Unix stream socket on which they listen (the pool makes it, listens,
and hands over the descriptor, so it can connect at once and again after a restart). A message is a 4-byte
big-endian length and that much JSON; descriptors travel as SCM_RIGHTS with its first byte. A request may carry an
"id", which its answer repeats: a base answers a `load` when the import is done and takes other requests meanwhile.
Between answers, events may arrive (they have "event" in place of "ok").

An import that hangs is ended by killing what is in its cgroup: then `load` is answered with "ok": false. The
bundle is a directory whose `app/` and `deps/` (if there is one) come first on the agent's sys.path; `app/` is the
working directory.

    base            load  TemplateSpec + [listen_fd, log_fd, *cgroup_fds]
                          -> {"ok": true, "pid", "services": [full names], "descriptors": base64 of a
                              FileDescriptorSet, "note": "" or why workers must import after the fork,
                              "degraded": [sentences]}
                          -> {"ok": false, "error": one sentence, "traceback": str, "unenforceable": "" or why it
                              would have run as root without a sandbox}; the process has ended
    image template  fork  WorkerSpec + [log_fd, control_fd, *secrets_fd, *cgroup_fds]
                          -> {"ok": true, "pid"}
                    spare WorkerSpec without worker_id and env + [*cgroup_fds]
                          -> {"ok": true, "pid"} of a process that has joined its cgroups and namespaces, taken on
                             its slot's uid and started grpc's core, and waits to become a worker: a later `fork`
                             with "spare": pid, the same slot, and then no cgroup_fds. If that spare is gone,
                             `fork` answers "ok": false.
    both            children -> {"ok": true, "children": {name: pid}}
                    quit  -> {"ok": true}, and it ends, leaving its children
    events                {"event": "exit", "name": key or worker_id, "pid", "status": as of waitpid(2)}

A worker in a container is forked by nobody: its entrypoint (`python -m agent_worker.container --worker`) connects
to a socket of the pool's, CONTAINER_CONTROL in the container, and is told by the first message there what `fork`
tells a process:

    pool to entrypoint  become  WorkerSpec ("spec") and TemplateSpec ("template", whose bundle and sandbox mean
                                nothing here) + [log_fd, *secrets_fd]; there is no answer

From then on that connection is the worker's `control_fd`; its socket is to be beside CONTAINER_CONTROL.

`secrets_fd` is there if the WorkerSpec says so: what `agentruntime.sealed` makes of the worker's secrets. The
template passes it on; the worker makes files of it before it runs any code of the agent's.

`cgroup_fds` are descriptors of files by which a process with one thread joins a control group, opened for writing by
the pool; the new process writes "0" to each before it does anything else, so it is never outside its limits.

A worker and the pool share one end each of a Unix stream socket pair (`control_fd`), on which each sends lines
of JSON. End of file tells the pool that the worker is gone; a worker lives on without its pool.

    worker to pool  {"event": "listening"}                        it serves on its socket
                    {"event": "failed", "stage": "secrets", "import" or "start", "error": str, "traceback": str}
    pool to worker  {"op": "drain", "grace_s": 30.0}              finish calls, then exit with status 0
                    {"op": "debug"} + [a connected stream socket]  carry the Debug Adapter Protocol over it; closed
                                                                  at once by a worker that has no debugger
"""

import json
import os
import socket
import struct
import time
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

_LENGTH = struct.Struct(">I")
LONGEST_MESSAGE = 16 * 2**20
MOST_DESCRIPTORS = 16
# Where a sandboxed worker sees the directory that holds its socket.
SANDBOX_WORKERS_DIR = PurePosixPath("/run/agent")
# In a container, the pool's socket; beside it the worker's own.
CONTAINER_CONTROL = str(SANDBOX_WORKERS_DIR / "control")
# Where a worker sees the sockets that the platform has for it.
KERNEL_DIR = PurePosixPath("/run/uapi")
# There, for system calls.
SYSTEM_CALLS = "s"
# There, the event log of conversations.
EVENT_LOG = "l"
# A uid range for each agent, above what systemd gives to containers (systemd.io/UIDS-GIDS).
UID_BASE = 0x70000000
UIDS_PER_AGENT = 4096
# Trailing metadata of a worker's answer to a health check: the longest that its event loop was blocked since the last
# one, in milliseconds.
LAG_KEY = "x-uapi-lag-ms"


@dataclass(frozen=True)
class SandboxSpec:
    """What an agent's processes may see and reach."""

    # Own user, mount, network and IPC namespaces, and a file system view of what a worker needs, read-only.
    isolated: bool = True
    # Leave the network namespace as it is.
    host_network: bool = False
    # First of UIDS_PER_AGENT host uids that belong to this agent; 0 where the pool may not map any.
    uid_base: int = 0
    # Host directory with a subdirectory per worker, which holds its socket.
    workers_dir: str = ""
    # Host directory with the sockets that the platform has for the agent's workers; "" for none.
    kernel_dir: str = ""
    # More host paths that are visible, read-only.
    read_only_paths: list[str] = field(default_factory=list)
    # Device nodes that are visible, for GPUs.
    devices: list[str] = field(default_factory=list)
    # A profile of `agentruntime.seccomp`, or "any" for no filter.
    system_calls: str = "default"
    # Whether to go on without isolation where this machine has none and the pool is root, so the agent would be.
    may_be_root: bool = False
    # "host:port" for which workers have ways out of their own network, see `agentruntime.egress`.
    egress: list[str] = field(default_factory=list)
    # Give each worker a place in memory for its secrets.
    secrets: bool = False


@dataclass(frozen=True)
class TemplateSpec:
    """An image revision to be loaded."""

    # Names the template in events: "my-agent@3".
    key: str
    agent: str
    # Directory of the unpacked image.
    bundle: str
    # "module:Class".
    entrypoint: str
    # Full names that agent.yaml promises; empty for "whatever the class serves".
    services: list[str] = field(default_factory=list)
    # Fork before the import: the workers import the agent's code themselves.
    import_in_worker: bool = False
    env: dict[str, str] = field(default_factory=dict)
    log_level: str = "INFO"
    sandbox: SandboxSpec = field(default_factory=SandboxSpec)


@dataclass(frozen=True)
class ConversationSpec:
    """How a worker handles the messages of conversations."""

    # A message that comes while another one is handled: "queue", "reject" or "interrupt".
    when_busy: str = "queue"
    # Of a message whose worker was lost: "retry" or "report".
    on_worker_lost: str = "retry"
    # Without a message, until what is at hand of a conversation is forgotten.
    idle_s: float = 60.0
    # From a message's being cancelled to the end of its handler's task.
    cancel_grace_s: float = 5.0


@dataclass(frozen=True)
class WorkerSpec:
    """One worker to be forked."""

    worker_id: str
    agent: str
    revision: int
    # From 1 to UIDS_PER_AGENT - 1, unique among the agent's living workers: its subdirectory of workers_dir
    # (made, and given to uid_base + slot, by the pool) and its uid inside the sandbox.
    slot: int
    env: dict[str, str] = field(default_factory=dict)
    log_level: str = "INFO"
    # "json": what it prints is kept as objects; "text": as it is.
    log_format: str = "text"
    # Calls handled at a time.
    concurrency: int = 64
    # Calls that wait beyond those; more are refused.
    queue: int = 1024
    # Of the requests that wait or are handled; more are refused.
    held_bytes: int = 128 * 2**20
    # Of responses: "none" or "gzip".
    compression: str = "none"
    # Gather the pieces of StreamText.
    optimize_throughput: bool = False
    # Let a debugger in, see "debug" above.
    debug: bool = False
    # For unary calls that come without a deadline.
    default_timeout_s: float = 60.0
    # For a SIGTERM, which says no grace of its own.
    stop_grace_s: float = 30.0
    # Its secrets come along as a descriptor.
    secrets: bool = False
    conversations: ConversationSpec = field(default_factory=ConversationSpec)


def socket_name(slot: int) -> str:
    """Of a worker's socket, relative to workers_dir."""
    return f"{slot}/s"


@dataclass(frozen=True)
class PeerFile:
    """What the pool tells the gateway of who has a uid, see `Home.peers`."""

    agent: str
    worker_id: str
    revision: int
    # Part of the name of the control group that its processes are in; "" where there is none, or none yet.
    group: str = ""


def encode(message: dict[str, Any]) -> bytes:
    """The frame of a message."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return _LENGTH.pack(len(body)) + body


def spec_message(op: str, spec: TemplateSpec | WorkerSpec) -> dict[str, Any]:
    """A `load`, `fork` or `spare` request."""
    return {"op": op, "spec": asdict(spec)}


def template_spec(data: dict[str, Any]) -> TemplateSpec:
    """The spec of a `load` request.

    Raises:
        TypeError: a field is missing or unknown.
    """
    return TemplateSpec(**{**data, "sandbox": SandboxSpec(**data["sandbox"])})


def worker_spec(data: dict[str, Any]) -> WorkerSpec:
    """The spec of a `fork` or `spare` request.

    Raises:
        TypeError: a field is missing or unknown.
    """
    return WorkerSpec(**{**data, "conversations": ConversationSpec(**data.get("conversations", {}))})


def send(channel: socket.socket, message: dict[str, Any], descriptors: list[int] | None = None) -> None:
    """Sends one message, blocking."""
    frame = encode(message)
    sent = socket.send_fds(channel, [frame], descriptors or [])
    if sent < len(frame):  # sending nothing to a peer that has read all and hung up would raise
        channel.sendall(frame[sent:])


def receive(channel: socket.socket, timeout_s: float | None = None) -> tuple[dict[str, Any], list[int]] | None:
    """The next message and the descriptors that came with it, or None at the end of the stream; blocking.

    Args:
        channel: the connection.
        timeout_s: for the whole message, however slowly its bytes come; None waits for ever.

    Raises:
        ValueError: the frame is too long, cut short, or not a JSON object. The stream is then of no more use.
        TimeoutError: it did not come in time. As before.
    """
    end_s = None if timeout_s is None else time.monotonic() + timeout_s
    descriptors: list[int] = []
    try:
        _bound(channel, end_s)
        head, descriptors, _, _ = socket.recv_fds(channel, _LENGTH.size, MOST_DESCRIPTORS)
        head += _exactly(channel, _LENGTH.size - len(head), end_s) if head else b""
        if len(head) < _LENGTH.size:
            _close(descriptors)
            return None
        (length,) = _LENGTH.unpack(head)
        if length > LONGEST_MESSAGE:
            raise ValueError(f"a message of {length} bytes")
        body = _exactly(channel, length, end_s)
        if len(body) < length:
            raise ValueError("the stream ended within a message")
        try:
            message = json.loads(body)
        except RecursionError:
            raise ValueError("a message nested too deeply") from None
        if not isinstance(message, dict):
            raise ValueError("a message that is not an object")
    except (ValueError, OSError):
        _close(descriptors)
        raise
    return message, descriptors


def _exactly(channel: socket.socket, count: int, end_s: float | None) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        _bound(channel, end_s)
        part = channel.recv(count - len(parts))
        if not part:
            break
        parts += part
    return bytes(parts)


def _bound(channel: socket.socket, end_s: float | None) -> None:
    if end_s is not None:
        # Zero would make the socket non-blocking.
        channel.settimeout(max(end_s - time.monotonic(), 0.001))


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
