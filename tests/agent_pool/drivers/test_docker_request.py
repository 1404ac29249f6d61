"""What is asked of an engine, and what its answers mean."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from agentruntime import seccomp

from agent_pool.cgroups.base import Limits
from agent_pool.drivers import docker_request
from agent_pool.drivers.base import Launch, Revision


def revision(**fields: Any) -> Revision:
    values = {
        "key": "a@1", "agent": "a", "number": 1, "image_digest": "sha256:1", "bundle": "/b", "entrypoint": "m:A",
        "services": (), "env": {}, "log_level": "INFO", "venv": "", "host_network": False, "agent_index": 0,
        "limits": Limits(10**8, 500, 32), "wants_gpus": False, "concurrency": 1, "default_timeout_s": 1.0,
        "start_timeout_s": 1.0, "mode": "container",
    }  # fmt: skip
    return Revision(**{**values, **fields})


def worker(gpus: tuple[int, ...] = (), **fields: Any) -> dict[str, Any]:
    launch = Launch("a-01~1", "a-01", revision(**fields), gpus)
    directory, kernel_dir = Path("/run/c/1"), Path("/run/k")
    return docker_request.worker(
        launch, image="sha256:i", user="7:7", directory=directory, kernel_dir=kernel_dir, pool="p"
    )


def profile(host: dict[str, Any]) -> Any:
    """The filter of system calls."""
    [found] = [each for each in host["SecurityOpt"] if each.startswith("seccomp=")]
    return json.loads(found.removeprefix("seccomp="))


def test_a_worker_gets_its_limits_its_directory_and_nothing_else() -> None:
    config = worker()
    assert (config["Image"], config["User"]) == ("sha256:i", "7:7")
    host = config["HostConfig"]
    assert host["NetworkMode"] == "none"
    assert (host["Memory"], host["MemorySwap"], host["PidsLimit"]) == (10**8, 10**8, 32)
    assert (host["CpuPeriod"], host["CpuQuota"]) == (100_000, 50_000)
    assert (host["CapDrop"], host["ReadonlyRootfs"]) == (["ALL"], True)
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert profile(host) == json.loads(json.dumps(seccomp.docker_profile("default")))
    assert sorted(host["Tmpfs"]) == ["/dev/shm", "/tmp"]
    assert host["RestartPolicy"] == {"Name": "no"}
    assert host["LogConfig"]["Type"] == "json-file"
    assert host["Mounts"] == [
        {"Type": "bind", "Source": "/run/c/1", "Target": "/run/agent", "ReadOnly": False},
        {"Type": "bind", "Source": "/run/k", "Target": "/run/uapi", "ReadOnly": True},
    ]
    assert "DeviceRequests" not in host
    assert config["Cmd"] == ["--worker"]
    assert config["Healthcheck"] == {"Test": ["NONE"]}
    assert config["Labels"] == {
        "dev.agentruntime.pool": "p",
        "dev.agentruntime.agent": "a",
        "dev.agentruntime.worker": "a-01",
        "dev.agentruntime.key": "a-01~1",
    }


def test_a_worker_finds_the_names_that_it_may_reach() -> None:
    entries = ("api.example.com:443", "localhost:80", "db.example.com:5432")
    hosts = ["api.example.com:127.1.0.1", "db.example.com:127.1.0.3"]
    assert worker(egress=entries)["HostConfig"]["ExtraHosts"] == hosts
    assert worker()["HostConfig"]["ExtraHosts"] == []
    assert "ExtraHosts" not in worker(egress=entries, host_network=True)["HostConfig"]


def test_what_a_revision_asks_for() -> None:
    host = worker((0, 3), host_network=True, read_only_root=False, restricted=True)["HostConfig"]
    assert (host["NetworkMode"], host["ReadonlyRootfs"]) == ("host", False)
    assert host["DeviceRequests"][0]["DeviceIDs"] == ["0", "3"]
    assert profile(host) == json.loads(json.dumps(seccomp.docker_profile("restricted")))


def test_one_with_secrets_has_a_place_for_them_in_memory() -> None:
    places = worker(secrets=("openai",))["HostConfig"]["Tmpfs"]
    assert sorted(places) == ["/dev/shm", "/run/secrets", "/tmp"]
    assert {"mode=0700", "uid=7", "gid=7", "noexec", "nosuid", "nodev"} <= set(places["/run/secrets"].split(","))


def test_a_description_says_nothing_of_where_python_loads_code_from() -> None:
    asked = revision(env={"A": "1", "PYTHONPATH": "/x", "LD_PRELOAD": "y"})
    config = docker_request.description(asked, image="i", user="7:7", pool="p")
    assert config["Cmd"] == ["--describe"]
    assert config["Env"] == ["HOME=/tmp", "A=1"]
    assert "Mounts" not in config["HostConfig"]
    assert config["HostConfig"]["NetworkMode"] == "none"


def test_caps_that_are_none_are_left_out_or_lifted() -> None:
    assert docker_request.caps(Limits()) == {}
    assert docker_request.caps(Limits(), lift=True) == {"CpuQuota": -1}


@pytest.mark.parametrize(
    ("state", "status", "oom_killed"),
    [
        ({"Status": "exited", "Running": False, "ExitCode": 0, "OOMKilled": False}, 0, False),
        ({"Status": "exited", "Running": False, "ExitCode": 3, "OOMKilled": False}, 3 << 8, False),
        ({"Status": "exited", "Running": False, "ExitCode": 137, "OOMKilled": True}, signal.SIGKILL, True),
        ({"Status": "exited", "Running": False, "ExitCode": 139, "OOMKilled": False}, signal.SIGSEGV, False),
        ({"Status": "exited", "Running": False, "ExitCode": 255, "OOMKilled": False}, 255 << 8, False),
        ({"Status": "running", "Running": True, "ExitCode": 0, "OOMKilled": False}, None, False),
    ],
)
def test_how_a_container_ended(state: dict[str, Any], status: int | None, oom_killed: bool) -> None:
    assert docker_request.ended(state) == (status, oom_killed)
