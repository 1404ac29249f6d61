"""A gRPC server with the platform's services, in memory: what clients and commands are tested against.

It checks nothing and keeps what it was sent; the real gateway and pool are met in the integration tests.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
from agentruntime import errors, names, status
from agentruntime._proto.uapi.v1 import (
    access_pb2,
    access_pb2_grpc,
    agent_gateway_pb2,
    agent_gateway_pb2_grpc,
    agent_pool_pb2,
    agent_pool_pb2_grpc,
    agent_registry_pb2,
    agent_registry_pb2_grpc,
    conversation_service_pb2_grpc,
    image_service_pb2,
    image_service_pb2_grpc,
    secret_service_pb2,
    secret_service_pb2_grpc,
    text_generation_pb2,
    text_generation_pb2_grpc,
)
from google.protobuf import json_format, timestamp_pb2

from tests.agentruntime.conversation_service import Conversations, Log

TEXT_SERVICE = "uapi.v1.TextGenerationService"


class Record:
    """What the server was sent, and what it shall raise."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.metadata: dict[str, Any] = {}
        self.time_remaining_s: float | None = None
        self.raises: dict[str, errors.AgentError] = {}
        # Raised once each, in this order, before anything else.
        self.failures: list[errors.AgentError] = []
        self.leases: set[str] = set()
        self.registrations = 0
        self.deployments = [
            agent_pool_pb2.Deployment(agent="my-agent", image="my-agent:1.0", revision=1, workers=[worker()])
        ]
        # Of any agent.
        self.services: list[str] = []
        self.outside: list[agent_registry_pb2.AgentInfo] = []
        self.log = Log()
        # Of the gateway.
        self.addresses = ["127.0.0.1:50051"]
        # While it is not set, RunAgent and StreamText do not answer.
        self.holds = threading.Event()
        self.holds.set()
        # A change goes on until this is set.
        self.shown = threading.Event()
        self.shown.set()
        # Where images come from, and what was made of them.
        self.image_source = "local"
        self.container_image = ""
        self.signatures: list[image_service_pb2.Signature] = []
        self._changed = threading.Condition()
        self._statuses: list[agent_pool_pb2.Deployment] = []

    def add(self, request: Any, context: grpc.ServicerContext) -> None:
        with self._changed:
            self.requests.append(request)
            self.metadata = dict(context.invocation_metadata())
            self.time_remaining_s = context.time_remaining()
            self._changed.notify_all()
        if self.failures and not isinstance(request, agent_registry_pb2.GetAgentRequest):
            abort(context, self.failures.pop(0))
        if error := self.raises.get(type(request).__name__.removesuffix("Request")):
            abort(context, error)

    def change(self, image: str) -> agent_pool_pb2.Deployment:
        """The first deployment with another image, after a status that watchers are told."""
        with self._changed:
            updating = agent_pool_pb2.Deployment(agent="my-agent", status="updating to revision 2 (1 of 2 workers)")
            self._statuses.append(updating)
            self._changed.notify_all()
        self.shown.wait(10.0)
        changed = agent_pool_pb2.Deployment()
        changed.CopyFrom(self.deployments[0])
        changed.MergeFrom(agent_pool_pb2.Deployment(image=image, revision=2, replicas=1))
        return changed

    def changes(self, context: grpc.ServicerContext) -> Iterator[agent_pool_pb2.Deployment]:
        """What watchers are told after what there was at first, for as long as they listen."""
        while context.is_active():
            with self._changed:
                self._changed.wait_for(lambda: self._statuses or not context.is_active())
                said, self._statuses = self._statuses, []
            yield from said

    def stop_waiting(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, condition: Callable[["Record"], bool], timeout_s: float = 10.0) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self), timeout_s)


def abort(context: grpc.ServicerContext, error: errors.AgentError) -> NoReturn:
    context.set_trailing_metadata(((status.DETAILS_KEY, status.encode(error)),))
    context.abort(status.code_of(error), error.message)


class TextGeneration(text_generation_pb2_grpc.TextGenerationServiceServicer):
    def __init__(self, record: Record) -> None:
        self._record = record

    def GenerateText(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        return text_generation_pb2.GenerateTextResponse(text=f"echo: {request.prompt}", confidence=0.5, tokens_used=2)

    def StreamText(self, request: Any, context: Any) -> Iterator[Any]:
        self._record.add(request, context)
        self._record.holds.wait()
        for number, word in enumerate(request.prompt.split(), start=1):
            yield text_generation_pb2.StreamTextResponse(text=word + " ", tokens_used=number)
        if request.prompt.endswith("cut"):
            abort(context, errors.Unavailable("the worker ended", reason="WORKER_LOST"))

    def GetHealth(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        return text_generation_pb2.HealthResponse(status="healthy")


class Registry(agent_registry_pb2_grpc.AgentRegistryServicer):
    def __init__(self, record: Record) -> None:
        self._record = record

    def RegisterAgent(self, request: Any, context: Any) -> Any:
        self._record.registrations += 1
        lease = f"lease-{self._record.registrations}"
        self._record.leases.add(lease)
        self._record.add(request, context)
        response = agent_registry_pb2.RegisterAgentResponse(lease_id=lease)
        response.lease_ttl.FromMilliseconds(60)
        response.agent.agent_id = request.registration.agent_id
        return response

    def KeepAlive(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        if request.lease_id not in self._record.leases:
            abort(context, errors.LeaseNotFound(f"no lease {request.lease_id}"))
        response = agent_registry_pb2.KeepAliveResponse()
        response.lease_ttl.FromMilliseconds(60)
        return response

    def DeregisterAgent(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        return agent_registry_pb2.DeregisterAgentResponse()

    def GetAgent(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        agent = agent_registry_pb2.AgentInfo(agent_id=request.agent_id, idempotent=request.agent_id != "once")
        agent.services.extend(self._record.services)
        return agent_registry_pb2.GetAgentResponse(agent=agent)

    def ListAgents(self, request: Any, context: Any) -> Any:
        return agent_registry_pb2.ListAgentsResponse(agents=self._record.outside)

    def WatchAgents(self, request: Any, context: Any) -> Any:
        raise NotImplementedError


class Gateway(agent_gateway_pb2_grpc.AgentGatewayServicer):
    def __init__(self, record: Record) -> None:
        self._record = record

    def CallAgent(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        response = agent_gateway_pb2.CallAgentResponse()
        json_format.ParseDict({"text": "hi", "tokens_used": 2, "confidence": 0.5}, response.data)
        return response

    def GetStatus(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        process = agent_gateway_pb2.ProcessStatus(
            name="gateway", pid=7, version="0.1.0", addresses=self._record.addresses, uptime_seconds=90.0
        )
        return agent_gateway_pb2.GetStatusResponse(processes=[process], problems=["the database is away"])


class Access(access_pb2_grpc.AccessServiceServicer):
    def __init__(self, record: Record) -> None:
        self._record = record

    """Knows an identity provider that has gone away."""

    def ListIdentityProviders(self, request: Any, context: grpc.ServicerContext) -> Any:
        corp = access_pb2.IdentityProvider(name="corp", keys=2, error="it does not answer")
        corp.fetched_at.GetCurrentTime()
        return access_pb2.ListIdentityProvidersResponse(
            providers=[corp, access_pb2.IdentityProvider(name="new")], file_error="providers[2].name: too long"
        )

    def CreateKey(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        key = access_pb2.AccessKey(key_id="0a1b", name=request.name, role=request.role, agents=request.agents)
        return access_pb2.CreateKeyResponse(secret="uapi_shown-once", key=key)

    def ListKeys(self, request: Any, context: Any) -> Any:
        key = access_pb2.AccessKey(
            key_id="0a1b",
            name="ci",
            role=access_pb2.ROLE_CALL,
            agents=["a", "b"],
            rate_per_second=2.5,
            max_concurrency=4,
        )
        return access_pb2.ListKeysResponse(keys=[key])

    def RevokeKey(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        return access_pb2.RevokeKeyResponse(key=access_pb2.AccessKey(key_id="0a1b", name=request.key))

    def SetCertificateGrant(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        said = access_pb2.CertificateGrant(uri=request.uri, role=request.role, agents=request.agents)
        return access_pb2.SetCertificateGrantResponse(grant=said)

    def ListCertificateGrants(self, request: Any, context: Any) -> Any:
        said = access_pb2.CertificateGrant(uri="spiffe://x/ci", role=access_pb2.ROLE_CALL, agents=["a", "b"])
        said.granted_at.FromSeconds(0)
        return access_pb2.ListCertificateGrantsResponse(grants=[access_pb2.CertificateGrant(uri="*"), said])

    def RemoveCertificateGrant(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        return access_pb2.RemoveCertificateGrantResponse(now=access_pb2.CertificateGrant(uri="*"))

    def GetCaller(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        grants = [
            access_pb2.Grant(role=access_pb2.ROLE_CALL, agents=["a"]),
            access_pb2.Grant(role=access_pb2.ROLE_OPERATE, agents=["*"]),
        ]
        return access_pb2.GetCallerResponse(principal="key:ci", grants=grants)


class Pool(agent_pool_pb2_grpc.AgentPoolServicer):
    def __init__(self, record: Record) -> None:
        self._record = record

    def RunAgent(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        self._record.holds.wait()
        deployment = agent_pool_pb2.Deployment(
            agent=request.agent or names.ImageReference.parse(request.image).agent,
            image=request.image,
            revision=1,
            services=[TEXT_SERVICE],
            descriptors=b"schema",
            replicas=request.replicas,
            workers=[] if request.HasField("replicas") and not request.replicas else [worker()],
            notes=["the network is not isolated here"],
        )
        return agent_pool_pb2.RunAgentResponse(deployment=deployment, image_source=self._record.image_source)

    def StopAgent(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        return agent_pool_pb2.StopAgentResponse(worker_ids=["my-agent-01"])

    def ListWorkers(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        return agent_pool_pb2.ListWorkersResponse(
            workers=[each for deployment in self._record.deployments for each in deployment.workers]
        )

    def StreamLogs(self, request: Any, context: Any) -> Iterator[Any]:
        self._record.add(request, context)
        for number in range(request.tail if request.HasField("tail") else 3):
            yield agent_pool_pb2.StreamLogsResponse(worker_id="my-agent-01", line=f"line {number}", level="INFO")

    def GetNode(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        return agent_pool_pb2.GetNodeResponse(
            capacity=agent_pool_pb2.NodeResources(cpu_millis=2000, memory_bytes=4 * 10**9),
            enforcement=[agent_pool_pb2.Enforcement(what="memory", enforced=True, detail="cgroup v1")],
        )

    def RestartAgent(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        return agent_pool_pb2.RestartAgentResponse(worker_ids=["my-agent-02"])

    def UpdateAgent(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        return agent_pool_pb2.UpdateAgentResponse(deployment=self._record.change(request.image))

    def RollbackAgent(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        return agent_pool_pb2.RollbackAgentResponse(deployment=self._record.change("my-agent:0.9"))

    def ScaleAgent(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        return agent_pool_pb2.ScaleAgentResponse(deployment=self._record.change(""))

    def ListRevisions(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        resources = agent_pool_pb2.Resources(cpu_millis=500, memory_bytes=64 * 10**6)
        revisions = [
            agent_pool_pb2.Revision(number=2, image="my-agent:1.1.0", cause="update", failure="it did not start"),
            agent_pool_pb2.Revision(number=1, image="my-agent:1.0.0", cause="run", current=True, ready_workers=2),
        ]
        for revision in revisions:
            revision.resources.CopyFrom(resources)
            revision.created_at.FromSeconds(1_700_000_000)
        return agent_pool_pb2.ListRevisionsResponse(revisions=revisions)

    def GetDeployment(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        for each in self._record.deployments:
            if each.agent == request.agent:
                return agent_pool_pb2.GetDeploymentResponse(deployment=each)
        abort(context, errors.AgentNotFound(request.agent))

    def WatchDeployments(self, request: Any, context: Any) -> Iterator[Any]:
        for each in self._record.deployments:
            yield agent_pool_pb2.WatchDeploymentsResponse(changed=each)
        yield agent_pool_pb2.WatchDeploymentsResponse(synced=True)
        context.add_callback(self._record.stop_waiting)
        for each in self._record.changes(context):
            yield agent_pool_pb2.WatchDeploymentsResponse(changed=each)

    def GetWorker(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        for each in self._record.deployments:
            for found in each.workers:
                if found.worker_id == request.worker_id:
                    return agent_pool_pb2.GetWorkerResponse(worker=found)
        abort(context, errors.WorkerNotFound(f"worker '{request.worker_id}' not found"))

    def ListDeployments(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    def WakeAgent(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    def AcknowledgeDeployments(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    def ReportLoad(self, request_iterator: Any, context: Any) -> Any:
        raise NotImplementedError

    def DebugWorker(self, request_iterator: Any, context: Any) -> Any:
        raise NotImplementedError


class Images(image_service_pb2_grpc.ImageServiceServicer):
    def __init__(self, record: Record) -> None:
        self._record = record

    def BuildImage(self, request_iterator: Any, context: Any) -> Iterator[Any]:
        for request in request_iterator:
            self._record.add(request, context)
            if request.HasField("spec"):
                yield image_service_pb2.BuildImageResponse(progress="reading the project")
        yield image_service_pb2.BuildImageResponse(image=self._image())

    def ListImages(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        return image_service_pb2.ListImagesResponse(images=[self._image()])

    def RemoveImage(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        return image_service_pb2.RemoveImageResponse()

    def _image(self) -> image_service_pb2.Image:
        made = image()
        made.container_image = self._record.container_image
        return made

    def TagImage(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        return image_service_pb2.TagImageResponse(image=image(request.new_reference))

    def PushImage(self, request: Any, context: Any) -> Iterator[Any]:
        self._record.add(request, context)
        yield image_service_pb2.PushImageResponse(progress="sending the requirements")
        yield image_service_pb2.PushImageResponse(digest=image().digest)

    def PullImage(self, request: Any, context: Any) -> Iterator[Any]:
        self._record.add(request, context)
        yield image_service_pb2.PullImageResponse(progress="fetching the code")
        yield image_service_pb2.PullImageResponse(image=image(request.reference))

    def ListSignatures(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        there = self._record.signatures
        return image_service_pb2.ListSignaturesResponse(
            image=image(request.reference),
            signatures=there,
            refusal="" if there else f"image '{request.reference}' is not signed",
        )

    def AddSignature(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        self._record.signatures.append(request.signature)
        return image_service_pb2.AddSignatureResponse()

    def GetDockerfile(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        return image_service_pb2.GetDockerfileResponse(dockerfile="FROM python:3.12-slim\n")


class Secrets(secret_service_pb2_grpc.SecretServiceServicer):
    def __init__(self, record: Record) -> None:
        self._record = record

    def SetSecret(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        made = secret_service_pb2.Secret(
            name=request.name, agents=request.agents, outdated_agents=request.agents[-1:]
        )
        return secret_service_pb2.SetSecretResponse(secret=made)

    def ListSecrets(self, request: Any, context: Any) -> Any:
        made = secret_service_pb2.Secret(name="openai", agents=["a", "b"], outdated_agents=["b"])
        return secret_service_pb2.ListSecretsResponse(secrets=[made])

    def DeleteSecret(self, request: Any, context: Any) -> Any:
        self._record.add(request, context)
        return secret_service_pb2.DeleteSecretResponse()


def worker() -> agent_pool_pb2.Worker:
    return agent_pool_pb2.Worker(
        worker_id="my-agent-01",
        agent="my-agent",
        revision=1,
        state=agent_pool_pb2.WORKER_STATE_READY,
        pid=4242,
        restarts=2,
        reason="",
        started_at=timestamp_pb2.Timestamp(seconds=1_700_000_000),
        usage=agent_pool_pb2.Usage(memory_bytes=5_000_000_000, cpu_percent=12.4),
    )


def image(reference: str = "my-agent:0.1.0") -> image_service_pb2.Image:
    return image_service_pb2.Image(reference=reference, digest="sha256:" + "ab" * 32, size_bytes=1234)


@contextmanager
def serving(record: Record, port: int = 0) -> Iterator[str]:
    """Serves on a port of loopback, a free one by default; yields its address."""
    server = grpc.server(futures.ThreadPoolExecutor(8))
    text_generation_pb2_grpc.add_TextGenerationServiceServicer_to_server(TextGeneration(record), server)
    agent_registry_pb2_grpc.add_AgentRegistryServicer_to_server(Registry(record), server)
    agent_gateway_pb2_grpc.add_AgentGatewayServicer_to_server(Gateway(record), server)
    access_pb2_grpc.add_AccessServiceServicer_to_server(Access(record), server)
    agent_pool_pb2_grpc.add_AgentPoolServicer_to_server(Pool(record), server)
    image_service_pb2_grpc.add_ImageServiceServicer_to_server(Images(record), server)
    secret_service_pb2_grpc.add_SecretServiceServicer_to_server(Secrets(record), server)
    conversations = Conversations(record.log, record.add, abort)
    conversation_service_pb2_grpc.add_ConversationServiceServicer_to_server(conversations, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
