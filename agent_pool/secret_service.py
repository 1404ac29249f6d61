"""SecretService, as the proto has it."""

from collections.abc import Sequence
from typing import Any

from agentruntime import errors, names, secrets, units
from agentruntime._proto.uapi.v1 import secret_service_pb2 as pb
from agentruntime._proto.uapi.v1 import secret_service_pb2_grpc
from grpc import aio

from agent_pool import messages
from agent_pool.pool import Pool
from agent_pool.secrets import grants
from agent_pool.secrets.grants import Secret

Context = aio.ServicerContext[Any, Any]


class SecretStoreService(secret_service_pb2_grpc.SecretServiceServicer):
    """Over the vault of one pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def SetSecret(self, request: pb.SetSecretRequest, context: Context) -> pb.SetSecretResponse:
        agents = checked_agents(request.name, request.agents)
        if len(request.value) > secrets.LONGEST_BYTES:
            raise errors.InvalidArgument(
                f"a secret has {units.format_size(secrets.LONGEST_BYTES)} at most; this one has {len(request.value)} "
                "bytes"
            )
        changed = await self._pool.finish(self._pool.vault.put(request.name, request.value or None, agents))
        return pb.SetSecretResponse(secret=self._message(changed))

    async def ListSecrets(self, request: pb.ListSecretsRequest, context: Context) -> pb.ListSecretsResponse:
        return pb.ListSecretsResponse(secrets=[self._message(each) for each in self._pool.vault.all()])

    async def DeleteSecret(self, request: pb.DeleteSecretRequest, context: Context) -> pb.DeleteSecretResponse:
        await self._pool.finish(self._pool.vault.delete(request.name))
        return pb.DeleteSecretResponse()

    def _message(self, secret: Secret) -> pb.Secret:
        return pb.Secret(
            name=secret.name,
            agents=secret.agents,
            changed_at=messages.timestamp(secret.changed_at_s),
            outdated_agents=grants.outdated(secret.name, self._workers()),
        )

    def _workers(self) -> list[tuple[str, grants.Versions, list[grants.Versions]]]:
        found: list[tuple[str, grants.Versions, list[grants.Versions]]] = []
        for deployment in self._pool.deployments():
            for worker in deployment.workers.values():
                if worker.handle:
                    wanted = deployment.spec_of(worker).permissions.secrets
                    now = self._pool.vault.versions(deployment.agent, wanted)
                    found.append((deployment.agent, now, [worker.handle.get("secrets", {})]))
        return found


def checked_agents(name: str, agents: Sequence[str]) -> list[str]:
    """For which agents a secret of that name is to be; none if nothing was said.

    Raises:
        InvalidArgument: a name is none, or it is one agent's own, and others are named.
    """
    owner, _ = secrets.split(name)
    found = list(dict.fromkeys(agents))
    if owner and found not in ([], [owner]):
        raise errors.InvalidArgument(f"secret '{name}' is agent '{owner}'s own; leave the agents out")
    if grants.ALL in found and found != [grants.ALL]:
        raise errors.InvalidArgument("'*' is all agents; name either it or agents")
    for agent in found:
        if agent != grants.ALL:
            names.check_agent_name(agent)
    return [owner] if owner else found
