"""The ids that callers of the OpenAI surface see: a message is found again by what its id says, without a table."""

import base64
import binascii
import hashlib
import re
import secrets
from dataclasses import dataclass

from agentruntime import names
from agentruntime.errors import AgentError, NotFound

from uapi_gateway.conversations.sending import checked_id

RESPONSE, COMPLETION = "resp_", "chatcmpl-"
_TOKEN = re.compile(r"[A-Za-z0-9_-]{4,700}")
# No id has it.
_BETWEEN = "\0"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a message is, but for whose it is: nobody reads another's by an id."""

    agent: str
    conversation_id: str
    message_id: str

    def written(self, prefix: str) -> str:
        """The id of a response or a completion."""
        said = _BETWEEN.join((self.agent, self.conversation_id, self.message_id)).encode()
        return prefix + base64.urlsafe_b64encode(said).decode().rstrip("=")

    @property
    def response_id(self) -> str:
        return self.written(RESPONSE)


def place_of(response_id: str) -> Place:
    """What the id of a response says.

    Raises:
        NotFound: it is none of ours.
    """
    token = response_id.removeprefix(RESPONSE)
    try:
        if not response_id.startswith(RESPONSE) or not _TOKEN.fullmatch(token):
            raise ValueError
        agent, conversation_id, message_id = (
            base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode("ascii").split(_BETWEEN)
        )
        names.check_agent_name(agent)
        place = Place(agent, checked_id(conversation_id, "conversation"), checked_id(message_id, "message"))
    except (ValueError, binascii.Error, AgentError):
        raise no_response(response_id) from None
    if place.response_id != response_id:
        raise no_response(response_id)
    return place


def no_response(response_id: str) -> NotFound:
    shown = response_id if len(response_id) <= 80 else response_id[:80] + "…"
    return NotFound(
        f"there is no response with the id '{shown}' of yours",
        reason="RESPONSE_NOT_FOUND",
        metadata={"param": "response_id"},
    )


def new_message_id() -> str:
    return secrets.token_urlsafe(12)


def new_conversation_id(idempotency_key: str = "") -> str:
    """One of its own for a request; that of a request which is repeated with a key is the same again."""
    if idempotency_key:
        return "conv_" + hashlib.sha256(idempotency_key.encode()).hexdigest()[:24]
    return "conv_" + secrets.token_urlsafe(12)
