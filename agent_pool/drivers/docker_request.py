"""What is asked of the engine for a container, as its API has it: pure functions of a worker and its place.

https://docs.docker.com/reference/api/engine/ says what each field means.
"""

import json
import secrets
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from agentruntime import egress, seccomp
from agentruntime.launch import CONTAINER_CONTROL, KERNEL_DIR
from agentruntime.sealed import MOST_BYTES
from agentruntime.secrets import DIRECTORY as SECRETS_DIR

from agent_pool.cgroups.base import CPU_PERIOD_US, Limits
from agent_pool.drivers.base import Launch, Revision

LABEL_POOL = "dev.agentruntime.pool"
LABEL_AGENT = "dev.agentruntime.agent"
LABEL_WORKER = "dev.agentruntime.worker"
LABEL_KEY = "dev.agentruntime.key"
# As a native worker has it: nothing else is kept when it ends.
_SCRATCH = dict.fromkeys(("/tmp", "/dev/shm"), "rw,exec,nosuid,nodev,mode=1777,size=50%")  # noqa: S108 — mount points
# What a worker says before it has its log, or what --describe answers, which is as long as the agent's protos.
_LOG_SIZE = "16m"
_SIGNALLED = 128
_LAST_SIGNAL = 64


def name(prefix: str) -> str:
    """For a container that is to be made: by it, it can be removed also where the engine did not say its id."""
    return f"{prefix}-{secrets.token_hex(6)}"


def worker(launch: Launch, *, image: str, user: str, directory: Path, kernel_dir: Path, pool: str) -> dict[str, Any]:
    """A container of a worker.

    Args:
        launch: the worker.
        image: id of its container image.
        user: its user and group, as numbers.
        directory: on the host, where its socket will be.
        kernel_dir: on the host, where the platform's sockets for it are.
        pool: names this pool among others of the same engine.
    """
    revision = launch.revision
    config = _container(revision, image=image, user=user, pool=pool)
    config["Labels"] |= {LABEL_WORKER: launch.worker_id, LABEL_KEY: launch.key}
    host = config["HostConfig"]
    host["Mounts"] = [
        _bound(directory, Path(CONTAINER_CONTROL).parent, read_only=False),
        _bound(kernel_dir, KERNEL_DIR, read_only=True),
    ]
    config["Cmd"] = ["--worker"]
    if revision.secrets:
        owner = user.partition(":")
        options = f"mode=0700,uid={owner[0]},gid={owner[2]},size={2 * MOST_BYTES},nr_inodes=1k"
        host["Tmpfs"][str(SECRETS_DIR)] = f"rw,noexec,nosuid,nodev,{options}"
    if revision.host_network:
        host["NetworkMode"] = "host"
    else:
        host["ExtraHosts"] = [f"{name}:{address}" for name, address in egress.hosts(revision.egress)]
    if launch.gpus:
        host["DeviceRequests"] = [
            {"DeviceIDs": [str(index) for index in launch.gpus], "Capabilities": [["gpu", "compute", "utility"]]}
        ]
    return config


def _bound(source: Path, target: PurePath, *, read_only: bool) -> dict[str, Any]:
    return {"Type": "bind", "Source": str(source), "Target": str(target), "ReadOnly": read_only}


def description(revision: Revision, *, image: str, user: str, pool: str) -> dict[str, Any]:
    """A container that only says what the agent serves."""
    config = _container(revision, image=image, user=user, pool=pool)
    # Where Python loads code from is not the agent's to say, see `agent_worker.worker.take_environment`.
    config["Env"] += [
        f"{name}={value}" for name, value in revision.env.items() if not name.startswith(("PYTHON", "LD_"))
    ]
    return {**config, "Cmd": ["--describe"]}


def _container(revision: Revision, *, image: str, user: str, pool: str) -> dict[str, Any]:
    return {
        "Image": image,
        "User": user,
        "Env": ["HOME=/tmp"],
        # A base image's would run commands in the worker, which the pool looks after itself.
        "Healthcheck": {"Test": ["NONE"]},
        "Labels": {LABEL_POOL: pool, LABEL_AGENT: revision.agent},
        "HostConfig": {
            "NetworkMode": "none",
            **caps(revision.limits),
            "CapDrop": ["ALL"],
            "SecurityOpt": _security(revision),
            "ReadonlyRootfs": revision.read_only_root,
            "Tmpfs": dict(_SCRATCH),
            "IpcMode": "private",
            "RestartPolicy": {"Name": "no"},
            "LogConfig": {"Type": "json-file", "Config": {"max-size": _LOG_SIZE, "max-file": "1"}},
        },
    }


def _security(revision: Revision) -> list[str]:
    """With the filter of system calls that a process has: the engine's own depends on its version."""
    options = ["no-new-privileges:true"]
    if not seccomp.missing():
        options.append(
            "seccomp=" + json.dumps(seccomp.docker_profile("restricted" if revision.restricted else "default"))
        )
    return options


def caps(limits: Limits, *, lift: bool = False) -> dict[str, int]:
    """The caps of a container, to be created or changed; those that are None are left out, or lifted."""
    found: dict[str, int] = {}
    if limits.memory_bytes is not None:
        # Memory and swap together: no swap.
        found |= {"Memory": limits.memory_bytes, "MemorySwap": limits.memory_bytes}
    if (quota := limits.cpu_quota_us) is not None:
        found |= {"CpuPeriod": CPU_PERIOD_US, "CpuQuota": quota}
    elif lift:
        found |= {"CpuQuota": -1}
    if limits.pids is not None:
        found |= {"PidsLimit": limits.pids}
    return found


def wait_status(exit_code: int) -> int:
    """As waitpid(2) has it, from what the engine says: like a shell, it counts signals from 128."""
    return exit_code - _SIGNALLED if _SIGNALLED < exit_code <= _SIGNALLED + _LAST_SIGNAL else exit_code << 8


def ended(state: Mapping[str, Any]) -> tuple[int | None, bool]:
    """From the `State` of an inspection: the wait status, None if it runs or never did, and whether the kernel killed
    a process of it for memory."""
    over = not state.get("Running") and state.get("Status") in ("exited", "dead")
    return (wait_status(int(state["ExitCode"])) if over else None), bool(state.get("OOMKilled"))
