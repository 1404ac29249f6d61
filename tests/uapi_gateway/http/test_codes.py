"""HTTP statuses of errors."""

import pytest
from agentruntime import errors, status

from uapi_gateway.http.codes import http_status


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.AgentNotFound("a"), 404),
        (errors.QueueFull("a"), 429),
        (errors.MessageTooLarge("a"), 413),
        (errors.ConversationFull("a"), 400),
        (errors.AgentNotReady("a"), 503),
        (errors.Internal("a"), 500),
        (errors.AgentError("a"), 500),
    ],
)
def test_is_that_of_the_class_or_one_above(error: errors.AgentError, expected: int) -> None:
    assert http_status(error) == expected


def test_every_code_is_an_error() -> None:
    assert all(400 <= http_status(cls.__new__(cls)) < 600 for cls in status.CODES)
