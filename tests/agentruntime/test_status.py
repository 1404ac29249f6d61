"""Errors on the wire and back."""

import grpc
import pytest
from agentruntime import errors, status
from google.rpc import status_pb2
from grpc import StatusCode, aio

from tests.agentruntime.test_errors import subclasses

ALL = [errors.AgentError, *subclasses(errors.AgentError)]


def on_the_wire(error: errors.AgentError) -> aio.AioRpcError:
    trailers = aio.Metadata((status.DETAILS_KEY, status.encode(error)))
    return aio.AioRpcError(status.code_of(error), aio.Metadata(), trailers, details=error.message)


@pytest.mark.parametrize("cls", ALL)
def test_a_class_comes_back_as_itself(cls: type[errors.AgentError]) -> None:
    error = cls("something")  # for AgentNotFound: an agent's name
    back = status.decode(on_the_wire(error))
    assert type(back) is (cls if cls is not errors.AgentError else errors.AgentError)
    assert (back.message, back.reason, back.metadata) == (error.message, error.reason, error.metadata)


def test_an_unknown_reason_falls_back_to_the_code() -> None:
    back = status.decode(on_the_wire(errors.NotFound("gone", reason="SOMETHING_NEW")))
    assert type(back) is errors.NotFound
    assert back.reason == "SOMETHING_NEW"


@pytest.mark.parametrize("code", [code for code in StatusCode if code is not StatusCode.OK])
def test_a_bare_status_becomes_the_class_of_its_code(code: StatusCode) -> None:
    back = status.decode(aio.AioRpcError(code, aio.Metadata(), aio.Metadata(), details="why"))
    assert status.code_of(back) is code
    assert back.message == "why"


def test_a_status_without_text_still_says_something() -> None:
    assert status.decode(aio.AioRpcError(StatusCode.ABORTED, aio.Metadata(), aio.Metadata())).message == "ABORTED"


def test_a_stream_that_a_dying_worker_cut_is_unavailable() -> None:
    cut = aio.AioRpcError(
        StatusCode.INTERNAL, aio.Metadata(), aio.Metadata(), details="Received RST_STREAM with error code 2"
    )
    back = status.decode(cut)
    assert type(back) is errors.Unavailable
    assert back.reason == "WORKER_LOST"


def test_details_of_another_domain_are_left_alone() -> None:
    foreign = status_pb2.Status(code=5, message="x").SerializeToString()
    trailers = aio.Metadata((status.DETAILS_KEY, foreign))
    back = status.decode(aio.AioRpcError(StatusCode.NOT_FOUND, aio.Metadata(), trailers, details="x"))
    assert type(back) is errors.NotFound


def test_the_code_is_found_along_the_mro() -> None:
    assert status.code_of(errors.InvalidManifest("x")) is grpc.StatusCode.INVALID_ARGUMENT
    assert status.code_of(errors.AgentFailed("x")) is grpc.StatusCode.FAILED_PRECONDITION
