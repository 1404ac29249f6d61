"""Templates and workers as processes: what is loaded, forked, refused and reaped."""

import collections
import os
import select
import signal
import socket
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from agentruntime import errors, launch, status
from agentruntime._proto.uapi.v1 import text_generation_pb2, text_generation_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.agent_worker import templates
from tests.waiting import until

pytestmark = pytest.mark.integration
EXAMPLES = Path(__file__).parents[2] / "examples"
ECHO = """
from agentruntime.agent import Agent
class A(Agent):
    def generate(self, prompt, *, temperature, max_tokens):
        return prompt
"""
# The answer is sent by a process that has imported the agent.
LIE = """
from agentruntime import launch
genuine = launch.send
launch.send = lambda channel, message: genuine(channel, {{**message, {}}})
"""


@pytest.fixture
def base() -> Iterator[templates.Base]:
    with templates.base() as running:
        yield running


def load(base: templates.Base, code: str, agent: str = "a", **settings: object) -> templates.Template:
    bundle = templates.write_bundle(base.directory / f"bundle-{agent}", m=textwrap.dedent(code))
    return base.load(agent, bundle, "m:A", **settings)


def ask(worker: templates.Worker, prompt: str, timeout_s: float = 10) -> str:
    with grpc.insecure_channel(worker.address) as channel:
        stub = text_generation_pb2_grpc.TextGenerationServiceStub(channel)
        response = stub.GenerateText(text_generation_pb2.GenerateTextRequest(prompt=prompt), timeout=timeout_s)
        return str(response.text)


def test_a_worker_is_forked_serves_and_drains(base: templates.Base) -> None:
    template = load(base, ECHO)
    assert template.answer["ok"]
    assert template.answer["services"] == ["uapi.v1.TextGenerationService"]
    worker = template.fork()
    assert worker.event() == {"event": "listening"}
    assert ask(worker, "hello") == "hello"
    with grpc.insecure_channel(worker.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        health = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    worker.drain()
    assert worker.event() == {}
    assert template.control.exit_of("a-01") == 0


def test_a_stream_finishes_within_the_grace_period_and_new_calls_are_refused(base: templates.Base) -> None:
    template = load(
        base,
        """
        import asyncio
        from agentruntime.agent import Agent
        class A(Agent):
            async def generate(self, prompt, *, temperature, max_tokens):
                for number in range(5):
                    yield str(number)
                    await asyncio.sleep(0.1)
        """,
    )
    worker = template.fork()
    worker.event()
    with grpc.insecure_channel(worker.address) as channel:
        stub = text_generation_pb2_grpc.TextGenerationServiceStub(channel)
        pieces = stub.StreamText(text_generation_pb2.StreamTextRequest(prompt="x"), timeout=10)
        first = next(pieces).text
        worker.drain()
        assert first + "".join(piece.text for piece in pieces) == "01234"
    assert template.control.exit_of("a-01") == 0


def test_what_outlasts_the_grace_period_is_told_why(base: templates.Base) -> None:
    template = load(
        base,
        """
        import asyncio
        from agentruntime.agent import Agent
        class A(Agent):
            async def generate(self, prompt, *, temperature, max_tokens):
                while True:
                    yield prompt
                    await asyncio.sleep(0.01)
        """,
    )
    worker = template.fork()
    worker.event()
    with grpc.insecure_channel(worker.address) as channel:
        stub = text_generation_pb2_grpc.TextGenerationServiceStub(channel)
        pieces = stub.StreamText(text_generation_pb2.StreamTextRequest(prompt="x"), timeout=20)
        next(pieces)
        worker.drain(grace_s=0.1)
        with pytest.raises(grpc.RpcError) as caught:
            collections.deque(pieces, maxlen=0)
    error = status.decode(caught.value)
    assert (type(error), error.reason) == (errors.WorkerDrained, "WORKER_DRAINED")
    assert template.control.exit_of("a-01") == 0


def test_a_servicer_with_its_own_proto_in_plain_functions(base: templates.Base) -> None:
    bundle = base.directory / "greeter"
    (bundle / "app").mkdir(parents=True)
    for name in ("greeter_pb2.py", "greeter_pb2_grpc.py"):
        (bundle / "app" / name).write_text((EXAMPLES / "greeter" / name).read_text())
    (bundle / "app" / "m.py").write_text(
        textwrap.dedent(
            """
            import greeter_pb2, greeter_pb2_grpc
            from agentruntime import errors
            class A(greeter_pb2_grpc.GreeterServicer):
                def start(self):
                    self.greeting = "Good day"
                def Greet(self, request, context):
                    if not request.name:
                        raise errors.InvalidArgument("name must not be empty")
                    return greeter_pb2.GreetResponse(text=f"{self.greeting}, {request.name}")
            """
        )
    )
    template = base.load("greeter", bundle, "m:A")
    worker = template.fork()
    assert worker.event() == {"event": "listening"}
    with grpc.insecure_channel(worker.address) as channel:
        # By hand, so that this process does not register the descriptors too.
        greet: Any = channel.unary_unary("/examples.greeter.v1.Greeter/Greet")
        assert b"Good day, Ada" in greet(b"\x0a\x03Ada", timeout=5)
        with pytest.raises(grpc.RpcError) as caught:
            greet(b"", timeout=5)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import no_such_library", "No module named 'no_such_library'"),
        ("raise RuntimeError('at import')", "RuntimeError: at import"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import os; os._exit(3)", "it ended while it was loaded"),
        ("class A: pass", "serves nothing"),
    ],
)
def test_a_failing_import_is_reported_and_leaves_nothing(base: templates.Base, code: str, said: str) -> None:
    template = load(base, code)
    assert not template.answer["ok"]
    assert said in template.answer["error"]
    assert base.control.ask({"op": "children"})["children"] == {}


def test_a_failing_start_is_reported_with_its_traceback(base: templates.Base) -> None:
    template = load(base, ECHO + "    def start(self):\n        raise RuntimeError('no model')\n")
    event = template.fork().event()
    assert (event["event"], event["stage"], event["error"]) == ("failed", "start", "RuntimeError: no model")
    assert "in start" in event["traceback"]
    assert os.waitstatus_to_exitcode(template.control.exit_of("a-01")) == 1


def test_an_import_that_starts_threads_is_done_after_the_fork(base: templates.Base) -> None:
    template = load(
        base, "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n" + ECHO
    )
    assert template.answer["note"] == "imports after the fork, because its import starts 1 thread"
    assert template.answer["services"] == ["uapi.v1.TextGenerationService"]
    worker = template.fork()
    assert worker.event() == {"event": "listening"}
    assert ask(worker, "hello") == "hello"


def test_one_slow_import_holds_up_no_other(base: templates.Base) -> None:
    slow = templates.Control(base.path)  # takes the connection over, as a restarted pool does
    base.control.close()
    base.control = slow
    assert load(base, ECHO, agent="quick").answer["ok"]


def test_a_worker_that_is_killed_is_reported_by_its_template(base: templates.Base) -> None:
    template = load(base, ECHO)
    worker = template.fork()
    worker.event()
    os.kill(worker.pid, signal.SIGKILL)
    assert worker.event() == {}
    assert os.waitstatus_to_exitcode(template.control.exit_of("a-01")) == -signal.SIGKILL
    assert template.control.ask({"op": "children"})["children"] == {}


def test_workers_outlive_their_template_and_base(base: templates.Base) -> None:
    template = load(base, ECHO)
    worker = template.fork()
    worker.event()
    os.kill(template.answer["pid"], signal.SIGKILL)
    base.process.kill()
    base.process.wait()
    assert ask(worker, "still here") == "still here"


def test_sigterm_drains_a_worker_whose_pool_is_gone(base: templates.Base) -> None:
    template = load(base, ECHO)
    worker = template.fork(stop_grace_s=5.0)
    worker.event()
    worker.channel.close()
    assert ask(worker, "no pool") == "no pool"
    os.kill(worker.pid, signal.SIGTERM)
    assert template.control.exit_of("a-01") == 0


def test_a_second_sigterm_ends_the_grace_of_a_worker_whose_pool_is_gone(base: templates.Base) -> None:
    code = """
    from agentruntime.agent import Agent
    import asyncio
    class A(Agent):
        async def generate(self, prompt, *, temperature, max_tokens):
            yield "begun"
            await asyncio.sleep(600)
    """
    template = load(base, code)
    worker = template.fork()
    worker.event()
    worker.channel.close()
    with grpc.insecure_channel(worker.address) as channel:
        stub = text_generation_pb2_grpc.TextGenerationServiceStub(channel)
        stream = stub.StreamText(text_generation_pb2.StreamTextRequest(prompt="x"), timeout=30)
        assert next(stream).text == "begun"
        os.kill(worker.pid, signal.SIGTERM)
        until(lambda: "worker drains" in worker.log.read_text())
        os.kill(worker.pid, signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert status.decode(caught.value).reason == "WORKER_DRAINED"
    assert template.control.exit_of("a-01") == 0


def test_an_agent_sees_its_own_environment_and_not_the_pools(
    base: templates.Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
    import os
    from agentruntime.agent import Agent
    class A(Agent):
        def generate(self, prompt, *, temperature, max_tokens):
            return ",".join(f"{name}={os.environ.get(name)}" for name in prompt.split())
    """
    template = load(base, code, env={"FROM_IMAGE": "1", "LD_PRELOAD": "/tmp/x.so"})
    worker = template.fork(env={"FROM_RUN": "2"})
    worker.event()
    assert ask(worker, "FROM_IMAGE FROM_RUN HOME USER LD_PRELOAD") == (
        "FROM_IMAGE=1,FROM_RUN=2,HOME=/tmp,USER=None,LD_PRELOAD=None"
    )


def test_workers_draw_different_random_numbers(base: templates.Base) -> None:
    code = """
    import random
    from agentruntime.agent import Agent
    random.seed(1)
    class A(Agent):
        def generate(self, prompt, *, temperature, max_tokens):
            return str(random.random())
    """
    template = load(base, code)
    first, second = template.fork(1), template.fork(2)
    assert first.event() == second.event() == {"event": "listening"}
    assert ask(first, "x") != ask(second, "x")


def test_more_calls_than_the_concurrency_wait(base: templates.Base) -> None:
    code = """
    import asyncio
    from agentruntime.agent import Agent
    class A(Agent):
        running = most = 0
        async def generate(self, prompt, *, temperature, max_tokens):
            self.running += 1
            self.most = max(self.most, self.running)
            await asyncio.sleep(0.05)
            self.running -= 1
            return str(self.most)
    """
    worker = load(base, code).fork(concurrency=2)
    worker.event()
    with grpc.insecure_channel(worker.address) as channel:
        stub = text_generation_pb2_grpc.TextGenerationServiceStub(channel)
        request = text_generation_pb2.GenerateTextRequest(prompt="x")
        calls = [stub.GenerateText.future(request, timeout=10) for _ in range(8)]
        assert max(int(call.result().text) for call in calls) == 2


def test_a_call_without_a_deadline_gets_the_agents_own(base: templates.Base) -> None:
    code = """
    import asyncio
    from agentruntime.agent import Agent
    class A(Agent):
        async def generate(self, prompt, *, temperature, max_tokens):
            await asyncio.sleep(60)
    """
    worker = load(base, code).fork(default_timeout_s=0.2)
    worker.event()
    with grpc.insecure_channel(worker.address) as channel:
        stub = text_generation_pb2_grpc.TextGenerationServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.GenerateText(text_generation_pb2.GenerateTextRequest(prompt="x"))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "without a deadline" in str(caught.value.details())


@pytest.mark.parametrize("noise", [b"\x00\x00\x00\x02[]", b"\xff\xff\xff\xff", b"\x00\x00\x00\x05oops!", b"\x00\x00"])
def test_noise_on_the_control_socket_ends_that_connection_only(base: templates.Base, noise: bytes) -> None:
    base.control._socket.sendall(noise)
    base.control.close()
    base.control = templates.Control(base.path)
    assert base.control.ask({"op": "nonsense"})["error"] == "ValueError: no such request: nonsense"
    assert base.control.ask({"op": "children", "id": 7})["id"] == 7


def test_a_spare_becomes_a_worker(base: templates.Base) -> None:
    template = load(base, ECHO)
    spare = template.spare()
    worker = template.fork(spare=spare)
    assert worker.pid == spare
    assert worker.event() == {"event": "listening"}
    assert ask(worker, "hello") == "hello"
    worker.drain()
    assert template.control.exit_of("a-01") == 0


def test_a_spare_that_is_gone_is_said(base: templates.Base) -> None:
    template = load(base, ECHO)
    spare = template.spare()
    os.kill(spare, signal.SIGKILL)
    template.control.exit_of("spare")
    with pytest.raises(AssertionError, match="that spare is gone"):
        template.fork(spare=spare)
    with pytest.raises(AssertionError, match="that spare is gone"):
        template.fork(slot=2, spare=1)


def test_a_spare_ends_with_its_template(base: templates.Base) -> None:
    template = load(base, ECHO)
    spare = os.pidfd_open(template.spare())
    os.kill(template.answer["pid"], signal.SIGKILL)
    assert select.select([spare], [], [], 10)[0]
    os.close(spare)


def test_an_import_that_starts_a_process_is_done_after_the_fork(base: templates.Base) -> None:
    template = load(base, "import subprocess\nchild = subprocess.Popen(['sleep', '0.2'])\n" + ECHO)
    assert template.answer["note"] == "imports after the fork, because its import starts 1 process"
    worker = template.fork()
    assert worker.event() == {"event": "listening"}


def test_what_an_import_says_of_its_process_is_not_believed(base: templates.Base) -> None:
    template = load(base, LIE.format("'pid': 1") + ECHO)
    assert template.answer["ok"]
    assert template.answer["pid"] != 1


@pytest.mark.parametrize("lie", ["'event': 'exit'", "'degraded': 7, 'id': []", "'note': {}, 'services': 5"])
def test_an_import_can_only_say_what_the_pool_expects(base: templates.Base, lie: str) -> None:
    template = load(base, LIE.format(lie) + ECHO)
    assert template.answer.keys() - {"id"} == {"ok", "services", "descriptors", "note", "pid", "degraded"}
    assert (template.answer["note"], template.answer["degraded"]) == ("", [])


@pytest.mark.parametrize("lie", ["'descriptors': 'x'", "'note': 'x' * 2**23"])
def test_an_import_that_says_nonsense_has_failed(base: templates.Base, lie: str) -> None:
    template = load(base, LIE.format(lie) + ECHO)
    assert not template.answer["ok"]
    assert base.control.ask({"op": "children"})["children"] == {}


def test_a_worker_whose_pool_gives_up_while_it_starts_ends(base: templates.Base) -> None:
    template = load(base, ECHO + "    async def start(self):\n        import asyncio; await asyncio.sleep(60)\n")
    worker = template.fork()
    worker.channel.close()
    assert template.control.exit_of("a-01") == 0


def test_a_failing_stop_is_logged_and_the_worker_ends_as_asked(base: templates.Base) -> None:
    template = load(base, ECHO + "    def stop(self):\n        raise RuntimeError('at stop')\n")
    worker = template.fork()
    worker.event()
    worker.drain()
    assert template.control.exit_of("a-01") == 0
    assert "RuntimeError: at stop" in worker.log.read_text()


def test_a_call_that_hangs_in_a_thread_does_not_keep_the_worker(base: templates.Base) -> None:
    code = """
    import time
    from agentruntime.agent import Agent
    class A(Agent):
        def generate(self, prompt, *, temperature, max_tokens):
            time.sleep(600)
    """
    template = load(base, code)
    worker = template.fork()
    worker.event()
    with grpc.insecure_channel(worker.address) as channel:
        stub = text_generation_pb2_grpc.TextGenerationServiceStub(channel)
        call = stub.GenerateText.future(text_generation_pb2.GenerateTextRequest(prompt="x"), timeout=30)
        worker.drain(grace_s=0.2)
        assert template.control.exit_of("a-01") == 0
        ended: Any = call.exception()
        assert ended.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def test_what_an_agent_prints_is_in_its_log_at_once(base: templates.Base) -> None:
    template = load(
        base, "print('at import')\n" + ECHO.replace("return prompt", "print('heard', prompt); return prompt")
    )
    assert (template.directory / "template.log").read_text() == "at import\n"
    worker = template.fork()
    worker.event()
    ask(worker, "hello")
    os.kill(worker.pid, signal.SIGKILL)
    assert "heard hello\n" in worker.log.read_text()


@pytest.fixture
def base_without_namespaces() -> Iterator[templates.Base]:
    """One that is root, in a user namespace of its own whose kernel allows no further one."""
    program = """
import os
from pathlib import Path
from agent_worker import linux, template
uid, gid = os.geteuid(), os.getegid()
linux.unshare(linux.CLONE_NEWUSER)
Path("/proc/self/setgroups").write_text("deny")
Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
Path("/proc/sys/user/max_user_namespaces").write_text("0")
template.main()
"""
    with templates.base(["-c", program]) as running:
        yield running


def test_no_agent_is_root_without_a_sandbox(base_without_namespaces: templates.Base) -> None:
    answer = load(base_without_namespaces, "open('/tmp/it-ran', 'w')\n" + ECHO).answer
    assert not answer["ok"]
    assert "unshare" in answer["unenforceable"]
    assert not Path("/tmp/it-ran").exists()


def test_an_agent_is_root_without_a_sandbox_if_that_is_allowed(base_without_namespaces: templates.Base) -> None:
    template = load(base_without_namespaces, ECHO, may_be_root=True, uid_base=0)
    assert "unshare" in template.answer["degraded"][0]
    worker = template.fork()
    assert worker.event() == {"event": "listening"}
    assert ask(worker, "hello") == "hello"
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines())
    assert int(fields["CapEff"], 16) == 0
    # What Linux calls a filter.
    assert fields["Seccomp"].strip() == "2"


@pytest.mark.root
def test_where_one_was_isolated_none_is_loaded_without(base: templates.Base) -> None:
    load(base, ECHO)
    spec = replace(base.templates[0].spec, key="b@1", agent="b")
    spec = replace(spec, sandbox=replace(spec.sandbox, workers_dir="/nonexistent"))
    with (base.directory / "b.log").open("ab") as log, socket.socket(socket.AF_UNIX) as listener:
        answer = base.control.ask(launch.spec_message("load", spec), [listener.fileno(), log.fileno()])
    assert not answer["ok"]
    assert answer["error"].startswith("it could not be isolated, as others were")
