"""How an agent is looked at: logs, usage, a debugger."""

import json
import socket
import subprocess
from collections.abc import Iterator

import pytest
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb

from tests.conformance.stage import Stage
from tests.integration.conftest import AGENT
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.root]
_TIMEOUT_S = 30


@pytest.fixture(scope="module")
def seen(stage: Stage) -> Iterator[Stage]:
    """The agent `seen`, with two workers."""
    with stage.running("seen", replicas=2, log_level="DEBUG"):
        yield stage


def test_logs(seen: Stage) -> None:
    """What workers print and log is in `agent logs`, with its worker and level."""
    for number in (1, 2):
        code = f"def answer(): print('printed by {number}', flush=True); logging.getLogger('a').warning('warned')"
        seen.ask(f"seen-0{number}", code)
    until(lambda: seen.agent("logs", "seen").stdout.count("warned") == 2)
    said = seen.agent("logs", "seen").stdout
    assert "printed by 1" in said
    assert "printed by 2" in said
    lines = [
        json.loads(line)
        for line in seen.agent("logs", "seen", "-o", "json", "--level", "warning").stdout.splitlines()
    ]
    assert {line["worker_id"] for line in lines} == {"seen-01", "seen-02"}
    assert all("warned" in line["line"] for line in lines)


def test_json_logs(stage: Stage) -> None:
    """With `--log-format json` each line is an object, also what an agent prints."""
    with stage.running("formatted", log_format=pb.LOG_FORMAT_JSON):
        stage.ask("formatted", "def answer(): print('a bare line', flush=True)")
        until(lambda: "a bare line" in stage.agent("logs", "formatted").stdout)
        request = pb.StreamLogsRequest(name="formatted")
        lines = [json.loads(each.line) for each in stage.client.pool.StreamLogs(request)]
        assert any(line["event"] == "a bare line" for line in lines)
        assert all({"time", "level", "event"} <= line.keys() for line in lines)


def test_log_aggregator(stage: Stage) -> None:
    """With `--log-aggregator` lines are sent to a Fluentd server, too."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(_TIMEOUT_S)
        aggregator = f"fluentd://127.0.0.1:{server.getsockname()[1]}"
        with stage.running("shipped", logging=pb.Logging(aggregator=aggregator)):
            stage.ask("shipped", "def answer(): print('a line that is sent', flush=True)")
            heard = b""
            # Nothing is acknowledged here, so it is sent again by the next connection, with what came since.
            while b"a line that is sent" not in heard:
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(_TIMEOUT_S)
                    while b"a line that is sent" not in heard and (piece := connection.recv(2**16)):
                        heard += piece
            assert b"shipped-01" in heard


def test_usage(seen: Stage) -> None:
    """A worker's use of CPU, memory and processes is measured."""
    before = seen.worker("seen-01").usage
    seen.ask("seen-01", "def answer(): sum(range(3_000_000))")
    after = seen.worker("seen-01").usage
    assert after.cpu_seconds > before.cpu_seconds
    assert 5_000_000 < after.memory_bytes <= after.memory_peak_bytes < 512_000_000
    assert 0 < after.memory_pss_bytes < 512_000_000
    assert after.pids > 0


def test_metrics(seen: Stage) -> None:
    """`agent metrics` has a worker's figures."""
    figures = json.loads(seen.agent("metrics", "seen-01", "-o", "json").stdout)
    assert "seen-01" in json.dumps(figures)
    assert "memory_bytes" in json.dumps(figures)
    assert "seen-01" in seen.agent("metrics", "seen-01").stdout


def test_debug(stage: Stage) -> None:
    """`agent debug` reaches a worker that has no network."""
    with stage.running("debugged", serving=pb.Serving(debug=True)):
        argv = [str(AGENT), "debug", "debugged-01", "--port", "0", "-o", "json"]
        with subprocess.Popen(argv, env=stage.environment, stdout=subprocess.PIPE, text=True) as command:
            assert command.stdout is not None
            text = ""
            while not text.rstrip().endswith("}") or text.count("{") != text.count("}"):
                line = command.stdout.readline()
                assert line, f"agent debug ended: {text}"
                text += line
            connect = json.loads(text)["connect"]
            with socket.create_connection((connect["host"], connect["port"]), timeout=_TIMEOUT_S) as debugger:
                body = json.dumps(
                    {"seq": 1, "type": "request", "command": "initialize", "arguments": {"adapterID": "t"}}
                )
                debugger.sendall(f"Content-Length: {len(body)}\r\n\r\n{body}".encode())
                heard = b""
                while b'"supports' not in heard:
                    piece = debugger.recv(2**16)
                    assert piece, heard
                    heard += piece
            command.terminate()
