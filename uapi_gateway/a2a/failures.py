"""Our errors as A2A's, where it has a name for them; the others keep their own."""

from a2a.utils.errors import A2AError, InvalidParamsError, TaskNotFoundError, UnsupportedOperationError
from agentruntime import errors, status


class Refused(A2AError):
    """An error that A2A has no name for; each way of calling says it in its own."""

    def __init__(self, error: errors.AgentError) -> None:
        code = status.code_of(error).name
        super().__init__(error.message, {"code": code, "reason": error.reason, **error.metadata})
        self.error = error


# Of what a task's id leads to.
_NOT_FOUND = (errors.ConversationNotFound, errors.MessageNotFound, errors.EventsExpired)


def translated(error: errors.AgentError) -> A2AError:
    """The error to raise in a handler."""
    if isinstance(error, _NOT_FOUND):
        return TaskNotFoundError(error.message)
    if isinstance(error, errors.InvalidArgument):
        return InvalidParamsError(error.message, {"reason": error.reason})
    if isinstance(error, errors.Unimplemented) or error.reason == "NO_CONVERSATIONS":
        return UnsupportedOperationError(error.message)
    return Refused(error)
