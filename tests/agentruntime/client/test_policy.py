"""What every call gets."""

import contextvars
import math

import pytest
from agentruntime import trace
from agentruntime.client.policy import CallPolicy, channel_options, credentials, failure
from agentruntime.client.target import resolve
from agentruntime.errors import InvalidArgument
from grpc import StatusCode, aio


def test_deadlines() -> None:
    policy = CallPolicy("", 30.0)
    assert policy.deadline_s(None) == 30.0
    assert policy.deadline_s(2.5) == 2.5
    assert policy.deadline_s(math.inf) is None


@pytest.mark.parametrize(
    ("code", "details", "timeout_s", "elapsed_s", "reason"),
    [
        (StatusCode.DEADLINE_EXCEEDED, "Stream removed", 2.0, 2.0, "DEADLINE_EXCEEDED"),
        (StatusCode.INTERNAL, "RST_STREAM", 2.0, 1.95, "DEADLINE_EXCEEDED"),
        (StatusCode.INTERNAL, "RST_STREAM", 2.0, 0.5, "WORKER_LOST"),
        (StatusCode.INTERNAL, "RST_STREAM", None, 99.0, "WORKER_LOST"),
        (StatusCode.NOT_FOUND, "no", 2.0, 2.0, "NOT_FOUND"),
        (StatusCode.UNAVAILABLE, "Stream removed (Socket closed)", 2.0, 2.0, "CONNECTION_LOST"),
        (StatusCode.UNAVAILABLE, "recvmsg: Connection reset by peer", None, 2.0, "CONNECTION_LOST"),
        (StatusCode.UNAVAILABLE, "GOAWAY received", None, 2.0, "CONNECTION_LOST"),
        (
            StatusCode.UNAVAILABLE,
            "upstream connect error or disconnect/reset before headers",
            None,
            2.0,
            "CONNECTION_LOST",
        ),
        (StatusCode.UNAVAILABLE, "the database is away", None, 2.0, "UNAVAILABLE"),
    ],
)
def test_failures(code: StatusCode, details: str, *, timeout_s: float | None, elapsed_s: float, reason: str) -> None:
    error = failure(aio.AioRpcError(code, aio.Metadata(), aio.Metadata(), details=details), timeout_s, elapsed_s)
    assert error.reason == reason
    if reason == "DEADLINE_EXCEEDED":
        assert error.message == "the answer was not complete within the 2 s that the call had"


def test_metadata() -> None:
    policy = CallPolicy("secret", 30.0, "my-agent")
    metadata = dict(policy.metadata([("x-own", "1")]))
    assert metadata["x-own"] == "1"
    assert metadata["x-uapi-agent"] == "my-agent"
    assert metadata["authorization"] == "Bearer secret"
    assert trace.TraceContext.parse(str(metadata["traceparent"])) is not None


def test_the_caller_s_own_metadata_stays() -> None:
    metadata = CallPolicy("secret", 30.0, "my-agent").metadata([("x-uapi-agent", "other"), ("authorization", "own")])
    assert [value for key, value in metadata if key == "x-uapi-agent"] == ["other"]
    assert [value for key, value in metadata if key == "authorization"] == ["own"]


def test_without_agent_or_token_neither_is_sent() -> None:
    assert [key for key, _ in CallPolicy("", 30.0).metadata(None)] == ["traceparent"]


def test_the_trace_goes_on() -> None:
    def run() -> None:
        context = trace.enter(None)
        header = str(dict(CallPolicy("", 30.0).metadata(None))["traceparent"])
        sent = trace.TraceContext.parse(header)
        assert sent is not None
        assert sent.trace_id == context.trace_id
        assert sent.span_id != context.span_id

    contextvars.copy_context().run(run)


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        CallPolicy.of(resolve("localhost:1"), "Not A Name")


def test_channels() -> None:
    assert ("grpc.enable_http_proxy", 0) in channel_options(resolve("localhost:1"), "0.1")
    assert ("grpc.enable_http_proxy", 0) not in channel_options(resolve("uapi.example.com:1"), "0.1")
    assert credentials(resolve("localhost:1")) is None
    assert credentials(resolve("uapi.example.com:1")) is not None
