"""`agent run`."""

from pathlib import Path
from typing import Annotated

import typer
from google.protobuf import descriptor_pb2

from agentruntime import errors, names, wire
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_pb2
from agentruntime.cli import deployment, output, platform, settings
from agentruntime.cli.update import hand_over, update
from agentruntime.client.sync import Client
from agentruntime.config import RuntimeConfig
from agentruntime.home import Home
from agentruntime.listening import Listen

_TEXT_GENERATION = "uapi.v1.TextGenerationService"
_CONVERSATIONS = "uapi.v1.ConversationService"


@settings.taken("run")
def command(
    image: Annotated[
        str, typer.Argument(metavar="IMAGE", help="name, name:tag or name@sha256:…; `agent images` lists them.")
    ],
    *,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The agent's name; the image's by default.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A configuration file; runtime-config.yaml if it exists.")
    ] = None,
    update_it: Annotated[
        bool, typer.Option("--update", help="If it runs with another image or settings, update it.")
    ] = False,
    dev: Annotated[
        bool,
        typer.Option("--dev", help="Develop it: build it in its project, run it open to debuggers, show its logs."),
    ] = False,
    hot_reload: Annotated[
        bool, typer.Option("--hot-reload", help="Develop it, and follow every change of its files.")
    ] = False,
    project: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Develop the project in that folder; the current one if its.")
    ] = None,
    cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --tls: the platform's certificate, if this starts it.")
    ] = None,
    key: platform.Key = None,
    ca: platform.CallersCa = None,
    flags: settings.Given,
    format_: output.Output = None,
) -> None:
    """Run an agent from its image.

    Starts the platform if none runs. The same command again changes nothing; other --replicas start or drain workers.
    What is not given is as agent.yaml says. --dev, --hot-reload and --project stay until Ctrl-C, and leave the agent
    running.
    """
    given = flags.load(config)
    listen = _listen(given, cert, key, ca)
    request = run_request(image, name, given)
    keys = flags.whole_keys()
    if dev or hot_reload or project:
        _develop(given, listen, request, keys, project, hot_reload=hot_reload)
        return
    as_json = output.wants_json(format_)
    _start_platform(given, listen)
    with platform.connect(given) as client:
        hand_over(client, _agent_of(request), keys)
        if update_it:
            _update(client, request, quiet=as_json)
        after = run(client, request, quiet=as_json)
    deployment.show(after, as_json=as_json)
    if not as_json:
        if permitted := deployment.permitted(after):
            print(permitted)
        if not request.settings.mode:
            output.note(f"note: {_mode_of(after)}")
        _say_how_to_call(after)


def _listen(config: RuntimeConfig, cert: Path | None, key: Path | None, ca: Path | None) -> Listen:
    """How the platform must listen, for callers to reach the agent as it demands.

    Raises:
        InvalidArgument: certificates are given without --tls, or for a platform elsewhere.
    """
    files = [platform.whole(path) for path in (cert, key, ca)]
    if any(files) and not config.access.tls:
        raise errors.InvalidArgument("--cert, --key and --ca say how TLS is served; add --tls")
    if any(files) and not platform.is_local(config):
        raise errors.InvalidArgument(
            f"--cert, --key and --ca are for the platform of this machine, and {config.uapi.endpoint} is named; give "
            "them to `agent up` there"
        )
    return Listen(tls=config.access.tls or None, tls_cert=files[0], tls_key=files[1], tls_ca=files[2])


def _start_platform(config: RuntimeConfig, listen: Listen) -> None:
    if platform.is_local(config):
        with output.progress("starting the platform"):
            platform.start_as_asked(Home.default(), listen)


def _develop(
    config: RuntimeConfig,
    listen: Listen,
    request: pool_pb2.RunAgentRequest,
    keys: list[str],
    project: Path | None,
    *,
    hot_reload: bool,
) -> None:
    from agentruntime.cli import dev  # noqa: PLC0415 — it builds and follows, which most runs do not

    local = platform.is_local(config)
    development = dev.development(request, project=project, hot_reload=hot_reload, local=local)
    _start_platform(config, listen)
    with platform.connect(config) as client:
        hand_over(client, _agent_of(request), keys)
        dev.develop(client, development)


def run_request(image: str, agent: str | None, config: RuntimeConfig) -> pool_pb2.RunAgentRequest:
    """The request that sends what was set, and nothing else.

    Raises:
        InvalidArgument: the image or the agent's name is none.
        FailedPrecondition: a setting that this version cannot honour.
    """
    config.check_supported()
    names.ImageReference.parse(image)
    return pool_pb2.RunAgentRequest(
        image=image,
        agent=names.check_agent_name(agent) if agent else "",
        replicas=config.replicas,
        settings=wire.agent_settings(config),
        allow_unenforced=config.allow_unenforced or False,
    )


def run(client: Client, request: pool_pb2.RunAgentRequest, *, quiet: bool) -> pool_pb2.Deployment:
    """Runs it, and shows how the pool gets on."""
    agent = _agent_of(request)
    goes_on = f"the start goes on; `agent ps --agent {agent}` shows it, `agent stop {agent}` ends it"
    answer = deployment.followed(
        client,
        agent,
        f"starting {agent}",
        lambda: client.pool.RunAgent(request, timeout=deployment.TIMEOUT_S),
        goes_on=goes_on,
        quiet=quiet,
    )
    if not quiet and answer.image_source not in ("", "local"):
        found = "the container engine" if answer.image_source == "docker" else f"the registry {answer.image_source}"
        output.note(f"the image comes from {found}")
    return answer.deployment


def _update(client: Client, request: pool_pb2.RunAgentRequest, *, quiet: bool) -> None:
    """Brings an agent that is there already to the image and the settings that it is asked to run with."""
    try:
        client.pool.GetDeployment(pool_pb2.GetDeploymentRequest(agent=_agent_of(request)))
    except errors.NotFound:
        return
    wanted = pool_pb2.UpdateAgentRequest(
        name=_agent_of(request),
        image=request.image,
        settings=request.settings,
        allow_unenforced=request.allow_unenforced,
    )
    update(client, wanted, quiet=quiet)


def _agent_of(request: pool_pb2.RunAgentRequest) -> str:
    return request.agent or names.ImageReference.parse(request.image).agent


def _mode_of(of: pool_pb2.Deployment) -> str:
    """Where nobody asked for a mode, which it is, and why."""
    if of.settings.mode == pool_pb2.RUNTIME_MODE_CONTAINER:
        return "it runs in containers, since nobody asked otherwise and a container engine answers (or --native)"
    return (
        "it runs as processes, since nobody asked otherwise and no container engine answered, or it ran so before; "
        "`agent doctor` says what is there (or --container)"
    )


def _say_how_to_call(of: pool_pb2.Deployment) -> None:
    if _CONVERSATIONS in of.services:
        print(f"Talk with it:  agent chat {of.agent}")
    if _TEXT_GENERATION in of.services:
        print(f'Call it:  agent call {of.agent} "Once upon a time"')
        return
    for service, method in unary_methods(of):
        if service == _CONVERSATIONS:
            continue
        print(f"Call it:  agent call {of.agent} --service {service} --method {method} --data '{{…}}'")


def unary_methods(of: pool_pb2.Deployment) -> list[tuple[str, str]]:
    """The methods that `agent call` can call, each with its service's full name."""
    files = descriptor_pb2.FileDescriptorSet.FromString(of.descriptors).file
    return [
        (f"{file.package}.{service.name}".lstrip("."), method.name)
        for file in files
        for service in file.service
        for method in service.method
        if f"{file.package}.{service.name}".lstrip(".") in of.services
        and not (method.client_streaming or method.server_streaming)
    ]
