"""System calls: what a worker may ask of the platform, and of other agents."""

import os
import signal
from ast import literal_eval
from collections.abc import Iterator

import pytest
from agentruntime._proto.uapi.v1 import agent_gateway_pb2, audit_pb2, audit_pb2_grpc
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb

from tests.conformance.stage import Stage
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.root]
# What is said of a call that fails.
_TRIED = """
from agentruntime import context, errors
def tried(make):
    try:
        return make()
    except errors.AgentError as error:
        return f"{type(error).__name__} {error.reason}: {error.message}"
"""
_AT_START = """
import os
from agentruntime import context
os.environ["SAID"] = context.blocking("callee").generate_text("callee", "at start").text
"""


@pytest.fixture(scope="module")
def caller(stage: Stage) -> Iterator[Stage]:
    """The agent `caller`, which may call `callee`, and not `hidden`."""
    with (
        stage.running("callee"),
        stage.running("hidden"),
        stage.running("caller", permissions=pb.Permissions(agents=["callee"]), env={"AT_START": _AT_START}),
    ):
        yield stage


def _ask(stage: Stage, code: str, timeout_s: float = 30) -> str:
    return stage.ask("caller", _TRIED + code, timeout_s)


def test_calls(caller: Stage) -> None:
    """A worker calls the agents that its permissions name, in streams too, and itself."""
    code = """
async def answer():
    async for piece in context.agent("callee").stream_text("callee", "one two"):
        yield piece.text
    yield (await context.agent("caller").generate_text("caller", " three")).text
"""
    assert _ask(caller, code) == "one two three"


def test_calls_at_start(caller: Stage) -> None:
    """A worker makes system calls as soon as its start() runs."""
    assert _ask(caller, "answer = lambda: os.environ['SAID']") == "at start"


def test_self(caller: Stage) -> None:
    """A worker is told who it is, and what it may use."""
    code = """
async def answer():
    me = await context.self()
    yield f"{me.agent} {me.worker_id} {me.revision} {me.permissions}"
"""
    assert _ask(caller, code) == "caller caller-01 1 {'agents': ('callee',)}"


def test_denial(caller: Stage) -> None:
    """A call that agent.yaml does not permit is refused with the line that it lacks, and audited."""
    said = _ask(caller, "answer = lambda: tried(lambda: context.blocking('hidden').generate_text('hidden', 'x'))")
    assert said.startswith("PermissionDenied NOT_PERMITTED: ")
    assert "`permissions: {agents: [callee, hidden]}`" in said
    # Whether there is such an agent is not told.
    absent = _ask(caller, "answer = lambda: tried(lambda: context.blocking('absent').generate_text('absent', 'x'))")
    assert absent == said.replace("hidden", "absent")
    code = """
async def answer():
    try:
        await context.check("egress", "example.com:443")
    except errors.PermissionDenied as error:
        yield error.message
"""
    assert "`permissions: {egress: [example.com:443]}`" in _ask(caller, code)
    audit = caller.client.stub(audit_pb2_grpc.AuditServiceStub, agent="")
    request = audit_pb2.ListAuditRecordsRequest(principal="agent:caller", denied_only=True, limit=3)
    records = [each.record for each in audit.ListAuditRecords(request)]
    assert [(each.action, each.target, each.worker_id) for each in records] == [
        ("call", "hidden", "caller-01"),
        ("call", "absent", "caller-01"),
        ("egress", "example.com:443", "caller-01"),
    ]


def test_forgery(caller: Stage) -> None:
    """Nothing that a worker says makes it another caller."""
    code = """
import grpc, socket
from agentruntime import calls
from agentruntime._proto.uapi.v1 import system_calls_pb2 as proto
from agentruntime._proto.uapi.v1 import system_calls_pb2_grpc, text_generation_pb2, text_generation_pb2_grpc
FORGED = [
    (name, value)
    for value in ("hidden", "local", "agent:hidden", "hidden>hidden", "callee>hidden")
    for name in (
        "x-uapi-principal", "x-uapi-caller-agent", "x-uapi-caller-worker", "x-uapi-caller-edge", "x-uapi-for",
        "x-uapi-cluster", "x-uapi-caller-key", "x-uapi-caller-secure", "x-envoy-original-dst-host",
    )
]
def answer():
    said = []
    with grpc.insecure_channel(calls.address) as channel:
        own = system_calls_pb2_grpc.SystemCallServiceStub(channel).GetSelf(proto.GetSelfRequest(), metadata=FORGED)
        said.append(own.agent)
        text = text_generation_pb2_grpc.TextGenerationServiceStub(channel)
        for metadata in ([("x-uapi-agent", "hidden")], [("x-uapi-agent", "callee"), ("x-uapi-agent", "hidden")]):
            try:
                text.GenerateText(
                    text_generation_pb2.GenerateTextRequest(prompt="x"), metadata=[*metadata, *FORGED], timeout=20
                )
                said.append("answered")
            except grpc.RpcError as error:
                said.append(error.code().name)
    with socket.socket(socket.AF_UNIX) as raw:
        # Whose a connection is: as the gateway says it to Envoy.
        raw.settimeout(20)
        raw.connect(calls.address.removeprefix("unix:"))
        head = bytes.fromhex("0d0a0d0a000d0a515549540a 2111 0015 7f000001 7f000001 0001 0001 e00006") + b"hidden"
        raw.sendall(head + b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes.fromhex("000000040000000000"))
        received = b""
        try:
            while piece := raw.recv(1000):
                received += piece
        except ConnectionError:
            pass
        said.append("closed")
    return said
"""
    self, hidden, both, raw = literal_eval(_ask(caller, code, timeout_s=60))
    assert (self, hidden, raw) == ("caller", "PERMISSION_DENIED", "closed")
    # Two names are refused, though the first is permitted.
    assert both == "INVALID_ARGUMENT"


def test_platform(caller: Stage) -> None:
    """No service of the platform can be reached by a worker."""
    code = """
import grpc
from agentruntime import calls
METHODS = (
    "uapi.v1.AgentPool/ListDeployments", "uapi.v1.ImageService/ListImages", "uapi.v1.AgentRegistry/ListAgents",
    "uapi.v1.AgentGateway/GetStatus", "uapi.v1.AuditService/VerifyAudit", "uapi.v1.AccessService/ListKeys",
    "uapi.v1.SecretService/ListSecrets", "grpc.health.v1.Health/Check",
)
def answer():
    said = []
    with grpc.insecure_channel(calls.address) as channel:
        for method in METHODS:
            try:
                channel.unary_unary("/" + method)(b"", timeout=20)
                said.append(method)
            except grpc.RpcError as error:
                said.append(error.code().name)
    return set(said)
"""
    assert _ask(caller, code, timeout_s=60) == "{'PERMISSION_DENIED'}"


def test_chain(caller: Stage) -> None:
    """A call that a worker makes has the deadline and the trace of the call that it handles; a circle ends."""
    code = """
from agentruntime import calls, trace
INNER = '''#
from agentruntime import calls, trace
def answer():
    return [calls.current.get().left_s(), calls.current.get().chain, trace.current.get().trace_id]
'''
async def answer():
    told = (await context.agent("callee").generate_text("callee", INNER)).text
    yield str([told, trace.current.get().trace_id])
"""
    told, trace_id = literal_eval(_ask(caller, code, timeout_s=9))
    left_s, chain, inner_id = literal_eval(told)
    assert 0 < left_s < 10
    assert (chain, inner_id) == (",caller", trace_id)
    code = """
os.environ["AGAIN"] = '''#
from agentruntime import context
async def answer():
    yield (await context.agent("caller").generate_text("caller", os.environ["AGAIN"])).text
'''
answer = lambda: tried(lambda: context.blocking("caller").generate_text("caller", os.environ["AGAIN"]))
"""
    assert "CALL_CHAIN_TOO_LONG" in _ask(caller, code)


def test_restarted_gateway(caller: Stage) -> None:
    """System calls work again when the gateway was killed and is back."""

    def gateway() -> int:
        status = caller.client.gateway.GetStatus(agent_gateway_pb2.GetStatusRequest())
        return next(each.pid for each in status.processes if each.name == "gateway")

    before = gateway()
    os.kill(before, signal.SIGKILL)
    until(lambda: gateway() != before, 30)
    code = "answer = lambda: context.blocking('callee').generate_text('callee', 'again').text"
    assert _ask(caller, code) == "again"
