"""Runs an author's `on_message`, and says how it ended."""

import asyncio
import inspect
import secrets
import traceback
from contextlib import aclosing
from typing import Any

from agentruntime import calls, errors, log
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.conversation import ChatMessage

from agent_worker.admission import of_its_handler
from agent_worker.conversations.context import ConversationContext
from agent_worker.conversations.endings import failed
from agent_worker.conversations.log import LogClient
from agent_worker.conversations.mailbox import Mailbox
from agent_worker.conversations.run import Run

_log = log.get("agent_worker.conversations")
# Of a failure: the log of the worker has all of it.
_LONGEST_TRACEBACK = 16 * 1024


class Handler:
    """Of one worker's agent.

    Args:
        agent: the author's.
        name: the agent's.
        client: of the log, for what the author reads.
    """

    def __init__(self, agent: Any, name: str, client: LogClient) -> None:
        self._on_message = agent.on_message
        self._name = name
        self._client = client

    async def handle(self, mailbox: Mailbox, run: Run) -> proto.Event:
        """The last event of a message that runs, whatever the author's code does.

        Raises:
            CancelledError: the message was cut.
        """
        message = run.message
        # A message outlives the call that brought it: its own calls have no deadline but theirs.
        incoming = calls.current.get()
        calls.current.set(calls.Incoming(incoming.chain if incoming else ""))
        context = ConversationContext(self._name, mailbox, run, self._client)
        try:
            returned = await self._run(ChatMessage.of_proto(message.chat, message.message_id), context)
            last = context.completion(returned)
        except errors.AgentError as error:
            last = failed(of_its_handler(error), message.message_id, _traceback(error))
        except GeneratorExit:
            raise
        except BaseException as error:
            # Also what would end the worker, and with it all other conversations: sys.exit(), KeyboardInterrupt.
            if isinstance(error, asyncio.CancelledError) and (message.is_cancelled or _is_being_cut()):
                raise
            last = self._failed(mailbox, message.message_id, error)
        if message.is_cancelled:
            # It took notice. What it sent stays said.
            raise asyncio.CancelledError
        return last

    def _failed(self, mailbox: Mailbox, message_id: str, error: BaseException) -> proto.Event:
        """Of a message whose handler let an error out that says nothing to callers."""
        request_id = secrets.token_hex(8)
        _log.error("on_message failed", conversation=mailbox.conversation_id, request_id=request_id, exc_info=error)
        hidden = errors.Internal(f"internal error, request id {request_id}", metadata={"request_id": request_id})
        return failed(hidden, message_id, _traceback(error))

    async def _run(self, said: ChatMessage, context: ConversationContext) -> object:
        result = self._on_message(said, context)
        if not inspect.isasyncgen(result):
            return await result
        async with aclosing(result) as pieces:
            async for piece in pieces:
                await context.reply(piece)
        return None


def _is_being_cut() -> bool:
    """Whether the platform cancels what runs now, and not the author's own code something of its own."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _traceback(error: BaseException) -> str:
    text = "".join(traceback.format_exception(error))
    return text[-_LONGEST_TRACEBACK:]
