"""`python -m agent_worker.container`: what a container of an agent's container image runs.

Without an argument, as under a plain `docker run`, it serves the agent by itself on a TCP port. With `--worker` it
becomes a worker of the pool that has bound its directory, with the socket `control`. With `--describe` it only says
what the agent serves.
"""

import argparse
import base64
import json
import os
import socket
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from agentruntime import errors, launch
from agentruntime.launch import CONTAINER_CONTROL, TemplateSpec, WorkerSpec
from agentruntime.manifest import AgentManifest

from agent_worker import egress, loader, worker
from agent_worker.control import exit_with
from agent_worker.sandbox import BUNDLE

# Where Cloud Run and its like tell a container to listen.
_PORT_VARIABLE = "PORT"
_DEFAULT_PORT = 50051
# `docker stop` kills after 10 seconds: calls that are left by then are told so before.
_PLAIN_GRACE_S = 9.0
_CONNECT_TIMEOUT_S = 10.0


def main() -> NoReturn:
    """Ends with the exit status of the container."""
    parser = argparse.ArgumentParser(prog="python -m agent_worker.container", description=__doc__)
    parser.add_argument("--describe", action="store_true", help="print what the agent serves as a line of JSON")
    parser.add_argument("--worker", action="store_true", help="be a worker of the pool that made this container")
    parser.add_argument(
        "--port",
        type=int,
        default=int(os.environ.get(_PORT_VARIABLE) or _DEFAULT_PORT),
        help=f"TCP port to serve on; default: ${_PORT_VARIABLE} or {_DEFAULT_PORT}",
    )
    arguments = parser.parse_args()
    app = Path(BUNDLE, "app")
    os.chdir(app if app.is_dir() else "/")
    if arguments.describe:
        exit_with(describe)
    if arguments.worker:
        exit_with(become_worker)
    exit_with(lambda: serve(arguments.port))


def describe() -> int:
    """Imports the agent, and prints one line of JSON: its services, or how it failed."""
    # What the agent prints as it is imported is not the answer.
    answer_fd = os.dup(1)
    os.dup2(2, 1)
    answer: dict[str, object]
    try:
        manifest = AgentManifest.load(Path(BUNDLE, "app"))
        # What the pool gave goes before what the author wrote, as it does for the workers.
        worker.take_environment({name: value for name, value in manifest.env.items() if name not in os.environ})
        loaded = loader.load(BUNDLE, manifest.entrypoint, manifest.services)
        answer = {
            "services": list(loaded.services),
            "descriptors": base64.b64encode(loaded.descriptors).decode(),
        }
    except errors.AgentError as error:
        answer = {"error": error.message, "traceback": ""}
    except BaseException as error:  # an agent's module may well call sys.exit()
        answer = {
            "error": f"{type(error).__name__}: {error}",
            "traceback": "".join(traceback.format_exception(error)),
        }
    with os.fdopen(answer_fd, "w") as out:
        out.write(json.dumps(answer) + "\n")
    return 1 if "error" in answer else 0


def become_worker() -> int:
    """Takes the pool's word on who this is, and lives as a forked worker does."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(CONTAINER_CONTROL)
    except OSError as error:
        # Never a server of its own instead: nobody would guard it.
        print(f"no pool waits at {CONTAINER_CONTROL} ({error.strerror}); a worker is started by one", file=sys.stderr)
        return 1
    received = launch.receive(connection, _CONNECT_TIMEOUT_S)
    if received is None:
        return 0  # the pool gave up on this worker
    connection.settimeout(None)
    message, (log_fd, *secrets_fd) = received
    worker.write_to(log_fd)
    template, spec = launch.template_spec(message["template"]), launch.worker_spec(message["spec"])
    address = f"unix:{Path(CONTAINER_CONTROL).with_name(Path(launch.socket_name(spec.slot)).name)}"
    return worker.run(
        # A container's own network lets everybody listen on any port.
        worker.Readied.of(spec, address, egress.open_ways(template.sandbox.egress)),
        spec,
        template,
        None,
        bundle=BUNDLE,
        channel=worker.PoolChannel(connection.detach()),
        secrets_fd=secrets_fd[0] if secrets_fd else None,
    )


def serve(port: int) -> int:
    """Serves the agent on a port of all interfaces, without a pool."""
    try:
        manifest = AgentManifest.load(Path(BUNDLE, "app"))
    except errors.InvalidManifest as error:
        print(error.message, file=sys.stderr)
        return 1
    template = TemplateSpec(
        key=manifest.name,
        agent=manifest.name,
        bundle=BUNDLE,
        entrypoint=manifest.entrypoint,
        services=manifest.services,
        # What `docker run --env` says goes before what the author wrote.
        env={name: value for name, value in manifest.env.items() if name not in os.environ},
    )
    spec = WorkerSpec(
        worker_id=manifest.name,
        agent=manifest.name,
        revision=1,
        slot=1,
        concurrency=manifest.concurrency,
        queue=manifest.queue,
        compression=manifest.compression or "none",
        optimize_throughput=manifest.optimize_throughput or False,
        default_timeout_s=manifest.timeout_s,
        stop_grace_s=_PLAIN_GRACE_S,
        log_format=manifest.logging.format or "text",
    )
    # A pool that never says anything.
    silence, channel = socket.socketpair()
    with silence:
        return worker.run(
            worker.Readied.of(spec, f"0.0.0.0:{port}"),
            spec,
            template,
            None,
            bundle=BUNDLE,
            channel=worker.PoolChannel(channel.detach()),
        )


if __name__ == "__main__":
    main()
