"""Lets a worker's server serve the conversations of an agent that has an `on_message`."""

from typing import Any

from agentruntime._proto.uapi.v1 import conversation_service_pb2_grpc
from agentruntime.launch import WorkerSpec
from grpc import aio

from agent_worker.admission import Slots
from agent_worker.conversations.handling import Handler
from agent_worker.conversations.log import LogClient
from agent_worker.conversations.mailboxes import Mailboxes
from agent_worker.conversations.service import ConversationServicer


def add_to(server: aio.Server, agent: Any, spec: WorkerSpec, slots: Slots, event_log: str) -> Mailboxes:
    """The conversations of a worker; to be drained with it.

    Args:
        server: of the worker.
        agent: the author's.
        spec: of the worker.
        slots: of the worker, for messages too.
        event_log: the path of the log's socket; "" where there is none.
    """
    client = LogClient(event_log)
    handler = Handler(agent, spec.agent, client)
    mailboxes = Mailboxes(client, slots, spec.conversations, spec.worker_id, handler.handle)
    servicer = ConversationServicer(mailboxes, client)
    conversation_service_pb2_grpc.add_ConversationServiceServicer_to_server(servicer, server)
    return mailboxes
