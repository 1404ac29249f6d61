"""The HTTP status of each error: that which google.rpc.Code has for it, with two exceptions."""

import grpc
from agentruntime import status
from agentruntime.errors import AgentError, ConversationFull, MessageTooLarge

_CODES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    # The client closed the request; what nginx says, too.
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
# Where waiting does not help, unlike with others of their code.
_OF_REASON = {MessageTooLarge.reason: 413, ConversationFull.reason: 400}


def http_status(error: AgentError) -> int:
    """The status of a response that says the error."""
    return _OF_REASON.get(error.reason) or _CODES.get(status.code_of(error), 500)
