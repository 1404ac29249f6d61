"""W3C trace context."""

import contextvars

import pytest
from agentruntime import trace
from agentruntime.trace import TraceContext
from hypothesis import given
from hypothesis import strategies as st

# The example of the specification, https://www.w3.org/TR/trace-context/#examples-of-http-traceparent-headers
EXAMPLE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_the_specification_s_example() -> None:
    context = TraceContext.parse(EXAMPLE)
    assert context == TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "01")
    assert context is not None
    assert context.header() == EXAMPLE


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        EXAMPLE.upper(),
        "ff" + EXAMPLE[2:],
        EXAMPLE.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32),
        EXAMPLE.replace("00f067aa0ba902b7", "0" * 16),
        EXAMPLE[:-1],
    ],
)
def test_what_is_no_header(header: str) -> None:
    assert TraceContext.parse(header) is None


def test_a_later_version_may_say_more() -> None:
    assert TraceContext.parse("01" + EXAMPLE[2:] + "-more") is not None


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    context = TraceContext.parse(text)
    assert context is None or len(context.trace_id) == 32


def test_a_child_stays_in_the_trace() -> None:
    parent = TraceContext.new()
    child = parent.child()
    assert child.trace_id == parent.trace_id
    assert child.span_id != parent.span_id
    assert TraceContext.parse(parent.header()) == parent


def test_enter() -> None:
    def run() -> None:
        assert trace.enter(EXAMPLE).trace_id == "4bf92f3577b34da6a3ce929d0e0e4736"
        assert trace.current.get() is not None
        assert trace.enter("nonsense").trace_id != trace.enter(None).trace_id

    contextvars.copy_context().run(run)
