"""`agent update`."""

from typing import Annotated

import typer

from agentruntime import api_keys, errors, names, wire
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_pb2
from agentruntime._proto.uapi.v1 import secret_service_pb2, secret_service_pb2_grpc
from agentruntime.cli import deployment, output, platform, settings
from agentruntime.cli import grace as graces
from agentruntime.client.sync import Client
from agentruntime.config import RuntimeConfig


@settings.taken("update")
def command(
    name: Annotated[str, typer.Argument(help="An agent, or one of its workers: then a canary.")],
    *,
    image: Annotated[
        str | None, typer.Option(metavar="IMAGE", help="name, name:tag or name@sha256:…; the same if not given.")
    ] = None,
    grace: graces.Grace = None,
    flags: settings.Given,
    format_: output.Output = None,
) -> None:
    """Give an agent another image or other settings.

    Worker by worker: each new one is ready before an old one drains. If one does not become healthy, all is rolled
    back. What is not given stays as it is.
    """
    request = update_request(name, image, flags.config())
    if period := graces.period(grace):
        request.grace_period.CopyFrom(period)
    as_json = output.wants_json(format_)
    with platform.connect() as client:
        if keys := flags.whole_keys():
            hand_over(client, _agent_of(client, name), keys)
        after = update(client, request, quiet=as_json)
    deployment.show(after, as_json=as_json)


def update_request(name: str, image: str | None, config: RuntimeConfig) -> pool_pb2.UpdateAgentRequest:
    """The request that sends what was set, and nothing else.

    Raises:
        InvalidArgument: nothing was set, or the image's name is none.
    """
    if image:
        names.ImageReference.parse(image)
    request = pool_pb2.UpdateAgentRequest(
        name=name,
        image=image or "",
        settings=wire.agent_settings(config),
        allow_unenforced=config.allow_unenforced or False,
    )
    if not image and not request.settings.ListFields():
        raise errors.InvalidArgument("what should change? Name an --image, or settings like --memory 1GB")
    return request


def hand_over(client: Client, agent: str, keys: list[str]) -> None:
    """Gives an agent the API key that its callers must hold, to present it to others.

    Args:
        client: of an administrator, if there is a key.
        agent: whose secret it becomes.
        keys: that were given whole.

    Raises:
        InvalidArgument: there are several.
    """
    if len(keys) > 1:
        raise errors.InvalidArgument("an agent presents one API key; give one whole, and the others by name")
    for key in keys:
        secret = secret_service_pb2.SetSecretRequest(name=f"{agent}/{api_keys.SECRET}", value=key.encode())
        client.stub(secret_service_pb2_grpc.SecretServiceStub, agent="").SetSecret(secret)


def _agent_of(client: Client, name: str) -> str:
    """The agent itself, or that of a worker."""
    workers = client.pool.ListWorkers(pool_pb2.ListWorkersRequest()).workers
    return next((each.agent for each in workers if each.worker_id == name), name)


def update(client: Client, request: pool_pb2.UpdateAgentRequest, *, quiet: bool) -> pool_pb2.Deployment:
    """Makes an update, and shows how it gets on."""
    name = request.name
    goes_on = f"the update goes on; `agent history {name}` says how it ends, `agent rollback {name}` takes it back"
    return deployment.followed(
        client,
        name,
        f"updating {name}",
        lambda: client.pool.UpdateAgent(request, timeout=deployment.TIMEOUT_S).deployment,
        goes_on=goes_on,
        quiet=quiet,
    )
