"""`Client` against a real server."""

import math
import threading
import time
from typing import Any

import grpc
import pytest
from agentruntime import Client, errors
from agentruntime._proto.uapi.v1 import agent_registry_pb2, text_generation_pb2, text_generation_pb2_grpc
from agentruntime.client import connection, repeat

from tests.agentruntime.client.test_dynamic import REQUEST
from tests.agentruntime.client.test_registration import DATA
from tests.agentruntime.platform_services import TEXT_SERVICE, Record


def test_a_call_has_deadline_trace_agent_and_token(endpoint: str, record: Record) -> None:
    with Client(endpoint, "secret") as client:
        assert client.generate_text("my-agent", "hi", temperature=0.5, max_tokens=3).text == "echo: hi"
    assert record.requests[0].max_tokens == 3
    assert record.time_remaining_s == pytest.approx(30, abs=5)
    assert record.metadata["x-uapi-agent"] == "my-agent"
    assert record.metadata["authorization"] == "Bearer secret"
    assert record.metadata["traceparent"].startswith("00-")
    assert record.metadata["user-agent"].startswith("agentruntime/")


def test_the_caller_s_deadline_wins(endpoint: str, record: Record) -> None:
    with Client(endpoint, timeout_s=9.0) as client:
        stub = client.agent("my-agent").text_generation
        stub.GetHealth(text_generation_pb2.HealthRequest())
        assert record.time_remaining_s == pytest.approx(9, abs=2)
        stub.GetHealth(text_generation_pb2.HealthRequest(), timeout=100)
        assert record.time_remaining_s == pytest.approx(100, abs=5)
        stub.GetHealth(text_generation_pb2.HealthRequest(), timeout=math.inf)
        assert record.time_remaining_s is None or record.time_remaining_s > 10_000


def test_streams(endpoint: str) -> None:
    with Client(endpoint) as client:
        assert [piece.text for piece in client.stream_text("my-agent", "a b c")] == ["a ", "b ", "c "]


def test_errors_are_ours_in_every_form_of_call(endpoint: str, record: Record) -> None:
    record.raises["GenerateText"] = errors.AgentNotFound("my-agent")
    request = text_generation_pb2.GenerateTextRequest(prompt="x")
    with Client(endpoint) as client:
        with pytest.raises(errors.AgentNotFound, match="agent 'my-agent' not found") as caught:
            client.generate_text("my-agent", "x")
        assert caught.value.metadata == {"agent": "my-agent"}
        with pytest.raises(errors.AgentNotFound):
            client.text_generation.GenerateText.with_call(request)
        future = client.text_generation.GenerateText.future(request)
        assert isinstance(future.exception(), errors.AgentNotFound)
        with pytest.raises(errors.AgentNotFound):
            future.result()
        with pytest.raises(errors.Unavailable, match="the worker ended") as cut:
            list(client.stream_text("my-agent", "a cut"))
        assert cut.value.reason == "WORKER_LOST"


def test_nobody_there() -> None:
    with Client("127.0.0.1:1", timeout_s=0.5) as client:
        with pytest.raises(errors.Unavailable, match=r"nothing answered at 127.0.0.1:1 within 0.5") as caught:
            client.generate_text("my-agent", "x")
        assert caught.value.reason == "NOT_CONNECTED"
        with pytest.raises(errors.Unavailable, match="nothing answered"):
            client.await_connection(0.1)
        with pytest.raises(errors.Unavailable, match="failed to connect"):
            client.text_generation.GetHealth(text_generation_pb2.HealthRequest(), wait_for_ready=False)


LOST = errors.Unavailable("the worker ended", reason="WORKER_LOST")
NOT_READY = errors.AgentNotReady("no worker is ready")


def kinds(record: Record) -> list[str]:
    return [type(request).__name__.removesuffix("Request") for request in record.requests]


def test_an_idempotent_call_is_repeated_once_the_registry_allows_it(endpoint: str, record: Record) -> None:
    record.failures = [LOST, NOT_READY]
    with Client(endpoint) as client:
        assert client.generate_text("my-agent", "hi").text == "echo: hi"
        assert kinds(record) == ["GenerateText", "GetAgent", "GenerateText", "GenerateText"]
        record.failures = [LOST]
        response, call = client.agent("my-agent").text_generation.GetHealth.with_call(
            text_generation_pb2.HealthRequest()
        )
        assert (response.status, call.code()) == ("healthy", grpc.StatusCode.OK)
        record.failures = [LOST]
        assert [piece.text for piece in client.stream_text("my-agent", "a b")] == ["a ", "b "]


def test_without_a_name_the_registry_is_asked_who_serves(endpoint: str, record: Record) -> None:
    info = agent_registry_pb2.AgentInfo(agent_id="a", services=[TEXT_SERVICE], idempotent=True)
    record.failures, record.outside = [LOST], [info]
    with Client(endpoint) as client:
        assert client.text_generation.GetHealth(text_generation_pb2.HealthRequest()).status == "healthy"
        record.failures, info.idempotent = [LOST], False
        with pytest.raises(errors.Unavailable, match="the worker ended"):
            client.text_generation.GetHealth(text_generation_pb2.HealthRequest())


def test_what_must_not_be_done_twice_is_not_repeated(endpoint: str, record: Record) -> None:
    with Client(endpoint) as client:
        record.failures = [LOST, LOST, LOST, LOST]
        with pytest.raises(errors.Unavailable, match="the worker ended"):
            client.generate_text("once", "hi")
        with pytest.raises(errors.Unavailable, match="the worker ended"):
            client.call_agent("my-agent", REQUEST)
        request = text_generation_pb2.HealthRequest()
        with pytest.raises(errors.Unavailable, match="the worker ended"):
            client.text_generation.GetHealth(request, wait_for_ready=False)
        with pytest.raises(errors.Unavailable, match="the worker ended"):
            client.text_generation.GetHealth.future(request).result()
        assert kinds(record) == ["GenerateText", "GetAgent", "CallAgent", "Health", "Health"]
        # This one no worker has seen.
        record.failures = [NOT_READY]
        assert client.call_agent("my-agent", REQUEST)["text"] == "hi"


def test_a_stream_is_not_begun_anew_once_a_piece_was_handed_over(endpoint: str, record: Record) -> None:
    with Client(endpoint) as client:
        stream = client.stream_text("my-agent", "a cut")
        assert next(stream).text == "a "
        with pytest.raises(errors.Unavailable, match="the worker ended"):
            list(stream)
    assert kinds(record) == ["StreamText"]


@pytest.mark.parametrize("agent", ["my-agent", "once"])
def test_a_stream_that_is_cancelled_while_the_registry_is_asked_is_not_begun_anew(
    endpoint: str, record: Record, monkeypatch: pytest.MonkeyPatch, agent: str
) -> None:
    ask = connection.Connection.may_repeat

    def asked(self: connection.Connection, attempts: repeat.Attempts, name: str) -> bool:
        answer = ask(self, attempts, name)
        stream.cancel()
        return answer

    monkeypatch.setattr(connection.Connection, "may_repeat", asked)
    record.failures = [LOST]
    with Client(endpoint) as client:
        stream: Any = client.agent(agent).text_generation.StreamText(
            text_generation_pb2.StreamTextRequest(prompt="a")
        )
        with pytest.raises(errors.Cancelled):
            next(stream)
    assert kinds(record) == ["StreamText", "GetAgent"]


def test_a_stream_that_is_cancelled_while_it_is_begun_anew_ends(endpoint: str, record: Record) -> None:
    record.failures = [NOT_READY]
    with Client(endpoint) as client:
        stream: Any = client.text_generation.StreamText(text_generation_pb2.StreamTextRequest(prompt="a b c"))
        begin = stream._start

        def begin_late() -> Any:
            stream.cancel()
            return begin()

        stream._start = begin_late
        with pytest.raises(errors.Cancelled):
            list(stream)


def test_the_deadline_is_that_of_all_attempts(endpoint: str, record: Record) -> None:
    record.raises["GenerateText"] = NOT_READY
    began = time.monotonic()
    # Between two attempts the one error is known, within the last one the other.
    expected = (errors.Unavailable, errors.DeadlineExceeded)
    with Client(endpoint) as client, pytest.raises(expected, match="no worker is ready"):
        client.generate_text("my-agent", "hi", timeout_s=0.5)
    assert time.monotonic() - began < 2
    assert kinds(record).count("GenerateText") > 2


def test_a_stub_of_an_own_proto_goes_to_its_agent(endpoint: str, record: Record) -> None:
    with Client(endpoint) as client:
        stub = client.stub(text_generation_pb2_grpc.TextGenerationServiceStub, agent="other")
        assert stub.GetHealth(text_generation_pb2.HealthRequest()).status == "healthy"
    assert record.metadata["x-uapi-agent"] == "other"


def test_platform_services_are_not_sent_to_an_agent(endpoint: str, record: Record) -> None:
    with Client(endpoint) as client:
        client.agent("my-agent").call_agent("other", REQUEST)
    assert "x-uapi-agent" not in record.metadata


def test_call_agent(endpoint: str, record: Record) -> None:
    with Client(endpoint) as client:
        assert client.call_agent("text-generator-01", REQUEST) == {"text": "hi", "tokens_used": 2, "confidence": 0.5}
    assert record.requests[0].agent_id == "text-generator-01"


def test_a_registration_is_renewed_and_taken_up_again_when_lost(endpoint: str, record: Record) -> None:
    with Client(endpoint) as client:
        assert client.register_agent(DATA).agent_id == "text-generator-01"
        record.wait_for(lambda seen: len(seen.requests) >= 3)
        assert record.registrations == 1
        record.leases.clear()
        record.wait_for(lambda seen: seen.registrations >= 2)
        client.deregister_agent("text-generator-01")
        assert type(record.requests[-1]).__name__ == "DeregisterAgentRequest"
    assert not any(thread.name.startswith("lease-") for thread in threading.enumerate())


def test_registering_again_replaces_the_lease(endpoint: str, record: Record) -> None:
    with Client(endpoint) as client:
        client.register_agent(DATA)
        client.register_agent(DATA, lease_ttl_s=5)
        assert [thread.name for thread in threading.enumerate()].count("lease-text-generator-01") == 1


def test_a_closed_client_says_so(endpoint: str) -> None:
    client = Client(endpoint)
    client.close()
    with pytest.raises(errors.FailedPrecondition, match="closed"):
        client.generate_text("my-agent", "x")


def test_no_grpc_error_escapes(endpoint: str, record: Record) -> None:
    record.raises["Health"] = errors.ResourceExhausted("full")
    with Client(endpoint) as client, pytest.raises(errors.AgentError) as caught:
        client.text_generation.GetHealth(text_generation_pb2.HealthRequest())
    assert not isinstance(caught.value, grpc.RpcError)
