"""`agent run`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf import descriptor_pb2

from agentruntime import errors, names, supervisor
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_pb2
from agentruntime.cli import output, platform
from agentruntime.config import RuntimeConfig
from agentruntime.home import Home

_TEXT_GENERATION = "uapi.v1.TextGenerationService"
# The pool bounds a start by the agent's own start timeout; beyond this it no longer answers at all.
_TIMEOUT_S = 3600.0

Env = Annotated[list[str] | None, typer.Option("--env", "-e", metavar="NAME=VALUE", help="Set in the workers.")]


def command(
    image: Annotated[
        str, typer.Argument(metavar="IMAGE", help="name, name:tag or name@sha256:…; `agent images` lists them.")
    ],
    *,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The agent's name; the image's by default.")
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="How many workers; one by default.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Reserved, and the cap unless --memory-limit is given.")
    ] = None,
    cpu: Annotated[
        str | None, typer.Option(metavar="CORES", help="Cores reserved (0.5, 500m), and the cap likewise.")
    ] = None,
    memory_limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="The kernel kills a worker beyond this.")
    ] = None,
    cpu_limit: Annotated[
        str | None, typer.Option(metavar="CORES", help="The kernel slows a worker down to this.")
    ] = None,
    gpu: Annotated[int | None, typer.Option(metavar="N", min=0, help="GPUs for each worker.")] = None,
    native: Annotated[
        bool, typer.Option("--native", help="Run as processes; what this version always does.")
    ] = False,
    venv: Annotated[Path | None, typer.Option(metavar="PATH", help="Python virtual environment to run in.")] = None,
    env: Env = None,
    network: Annotated[
        str | None, typer.Option(metavar="MODE", help="isolated (the default, also called none) or host.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(metavar="LEVEL", help="DEBUG, INFO, WARNING or ERROR.")] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A configuration file; runtime-config.yaml if it exists.")
    ] = None,
    allow_unenforced: Annotated[
        bool, typer.Option("--allow-unenforced", help="Run although a limit cannot be enforced here.")
    ] = False,
    format_: output.Output = None,
) -> None:
    """Run an agent from its image.

    Starts the platform if none runs. The same command again changes nothing; other --replicas start or drain workers.
    Unset limits are those of agent.yaml.
    """
    flags = {
        "mode": "native" if native else None,
        "replicas": replicas,
        "resources.memory": memory,
        "resources.cpu": cpu,
        "resources.memory_limit": memory_limit,
        "resources.cpu_limit": cpu_limit,
        "resources.gpu": gpu,
        "venv": str(venv.absolute()) if venv else None,
        "env": _environment(env) if env else None,
        "network": network,
        "log_level": log_level,
        "allow_unenforced": allow_unenforced or None,
    }
    settings = RuntimeConfig.load(flags=flags, file=config)
    request = run_request(image, name, settings)
    if platform.is_local(settings):
        with output.progress("starting the platform"):
            platform.start(Home.default(), supervisor.Listen())
    with platform.connect(settings) as client, output.progress(f"starting {request.agent or image}"):
        deployment = client.pool.RunAgent(request, timeout=_TIMEOUT_S).deployment
    _print(deployment, output.wants_json(format_))


def run_request(image: str, agent: str | None, settings: RuntimeConfig) -> pool_pb2.RunAgentRequest:
    """The request that sends what was set, and nothing else.

    Raises:
        InvalidArgument: the image or the agent's name is none.
        FailedPrecondition: a setting that this version cannot honour.
    """
    settings.check_supported()
    names.ImageReference.parse(image)
    resources, health = settings.resources, settings.health_check
    networks = {None: pool_pb2.NETWORK_MODE_UNSPECIFIED, "isolated": pool_pb2.NETWORK_MODE_ISOLATED}
    request = pool_pb2.RunAgentRequest(
        image=image,
        agent=names.check_agent_name(agent) if agent else "",
        settings=pool_pb2.AgentSettings(
            network=networks.get(settings.network, pool_pb2.NETWORK_MODE_HOST),
            venv=settings.venv or "",
            env=settings.env,
            log_level=settings.log_level or "",
        ),
        allow_unenforced=settings.allow_unenforced or False,
    )
    if settings.replicas is not None:
        request.replicas = settings.replicas
    _set(
        request.settings.resources,
        cpu_millis=resources.cpu_millis,
        memory_bytes=resources.memory_bytes,
        cpu_limit_millis=resources.cpu_limit_millis,
        memory_limit_bytes=resources.memory_limit_bytes,
        gpus=resources.gpus,
        pids_limit=resources.pids_limit,
    )
    _set(
        request.settings.health_check,
        interval_seconds=health.interval_s,
        timeout_seconds=health.timeout_s,
        retries=health.retries,
        start_timeout_seconds=health.start_timeout_s,
    )
    return request


def _set(message: Any, **values: float | None) -> None:
    """Sets what is not None; a message of which nothing is set stays unset itself."""
    for name, value in values.items():
        if value is not None:
            setattr(message, name, value)


def _environment(pairs: list[str]) -> dict[str, str]:
    environment = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise errors.InvalidArgument(f"--env: '{pair}' is not NAME=VALUE")
        environment[key] = value
    return environment


def _print(deployment: pool_pb2.Deployment, as_json: bool) -> None:
    if as_json:
        data = output.as_data(deployment)
        # For programs that route by it; a reader of JSON has no use for a serialized schema.
        del data["descriptors"]
        output.print_json(data)
        return
    for sentence in deployment.notes:
        output.note(f"note: {sentence}")
    ready = [worker.worker_id for worker in deployment.workers if worker.state == pool_pb2.WORKER_STATE_READY]
    if not ready and deployment.replicas == 0:
        start = names.run_command(deployment.image, deployment.agent, 1)
        print(f"{deployment.agent} is registered with no workers; `{start}` starts one")
        return
    print(f"{deployment.agent} runs {deployment.image}: {', '.join(ready) or 'no worker is ready'}")
    if _TEXT_GENERATION in deployment.services:
        print(f'Call it:  agent call {deployment.agent} "Once upon a time"')
        return
    for service, method in unary_methods(deployment):
        print(f"Call it:  agent call {deployment.agent} --service {service} --method {method} --data '{{…}}'")


def unary_methods(deployment: pool_pb2.Deployment) -> list[tuple[str, str]]:
    """The methods that `agent call` can call, each with its service's full name."""
    files = descriptor_pb2.FileDescriptorSet.FromString(deployment.descriptors).file
    return [
        (f"{file.package}.{service.name}".lstrip("."), method.name)
        for file in files
        for service in file.service
        for method in service.method
        if f"{file.package}.{service.name}".lstrip(".") in deployment.services
        and not (method.client_streaming or method.server_streaming)
    ]
