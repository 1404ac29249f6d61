"""`agent debug`."""

import math
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated

import typer

from agentruntime import errors
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_pb2
from agentruntime.cli import output, platform
from agentruntime.client.sync import Client

# What VS Code's Python extension suggests.
_PORT = 5678
_PIECE_BYTES = 65536
# Where a worker sees the agent's own files.
_REMOTE_ROOT = "/agent/app"


def command(
    worker: Annotated[str, typer.Argument(metavar="WORKER", help="One worker, like my-agent-01.")],
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="Of this machine; 0 takes any.")] = _PORT,
    format_: output.Output = None,
) -> None:
    """Attach a debugger to a worker that runs with --debug.

    Listens on localhost for one that speaks the Debug Adapter Protocol, like VS Code's, until Ctrl-C. With --output
    json, prints just what goes into VS Code's launch.json.
    """
    as_json = output.wants_json(format_)
    with platform.connect() as client:
        _check(client, worker)
        try:
            listener = socket.create_server(("127.0.0.1", port))
        except OSError as error:
            raise errors.FailedPrecondition(
                f"port {port} cannot be listened on ({error.strerror}); name another with --port"
            ) from None
        with listener, suppress(KeyboardInterrupt):
            _say_how_to(worker, listener.getsockname()[1], as_json=as_json)
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=_carry, args=(client, worker, connection), daemon=True).start()


def _check(client: Client, worker_id: str) -> None:
    found = client.pool.GetWorker(pool_pb2.GetWorkerRequest(worker_id=worker_id)).worker
    request = pool_pb2.GetDeploymentRequest(agent=found.agent)
    if not client.pool.GetDeployment(request).deployment.settings.serving.debug:
        remedy = f"`agent update {found.agent} --debug` makes workers that do"
        raise errors.FailedPrecondition(f"agent '{found.agent}' does not run with debug; {remedy}")


def _say_how_to(worker_id: str, port: int, *, as_json: bool) -> None:
    launch = {
        "name": f"Attach to {worker_id}",
        "type": "debugpy",
        "request": "attach",
        "connect": {"host": "127.0.0.1", "port": port},
        "pathMappings": [{"localRoot": "${workspaceFolder}", "remoteRoot": _REMOTE_ROOT}],
    }
    if not as_json:
        print(f"waiting on 127.0.0.1:{port} for a debugger of {worker_id}, until Ctrl-C")
        print("In VS Code, with the agent's project open, a configuration of .vscode/launch.json:")
    output.print_json(launch)
    sys.stdout.flush()


def _carry(client: Client, worker_id: str, connection: socket.socket) -> None:
    """One debugger's conversation, to its end."""

    def requests() -> Iterator[pool_pb2.DebugWorkerRequest]:
        yield pool_pb2.DebugWorkerRequest(worker_id=worker_id)
        with suppress(OSError):  # closed below, because the worker's side ended
            while piece := connection.recv(_PIECE_BYTES):
                yield pool_pb2.DebugWorkerRequest(data=piece)

    output.note(f"a debugger attaches to {worker_id}")
    try:
        for response in client.pool.DebugWorker(requests(), timeout=math.inf):
            connection.sendall(response.data)
    except errors.AgentError as error:
        output.note(f"error: {error.message}")
    except OSError as error:
        output.note(f"the debugger is gone ({error.strerror})")
    else:
        output.note(f"the debugger has left {worker_id}")
    finally:
        with connection, suppress(OSError):
            # Also for the thread that waits for more of it.
            connection.shutdown(socket.SHUT_RDWR)
