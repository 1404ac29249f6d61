"""What a newcomer does, from a new project to its answer; and what the seed's document writes, word for word."""

import json
import re
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from agentruntime import Client, trace
from agentruntime.home import Home
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import Platform
from tests.waiting import until

pytestmark = pytest.mark.integration


def test_a_new_project_runs_at_once(platform: Platform, project: Path) -> None:
    platform.agent("init", "my-agent", cwd=project)
    made = project / "my-agent"
    assert sorted(path.name for path in made.iterdir()) == ["agent.py", "agent.yaml"]
    platform.agent("build", "my-agent", "-t", "my-agent:1.2.0", cwd=project)
    assert "my-agent:1.2.0" in [image["reference"] for image in platform.json("images")]
    platform.agent("run", "my-agent:1.2.0", "--memory", "128MB", "--cpu", "0.1")
    assert platform.agent("call", "my-agent", "Hello").stdout.strip()
    (worker,) = platform.workers("my-agent")
    assert worker["worker_id"] == "my-agent-01"
    assert worker["state"] == "WORKER_STATE_READY"
    assert {"agent", "revision", "pid", "restarts", "reason"} <= set(worker)
    platform.agent("rmi", "my-agent:1.2.0", code=10 + 9)
    platform.agent("stop", "my-agent-01")
    assert platform.workers("my-agent") == []
    # With no worker left it sleeps, and a call wakes it.
    assert platform.agent("call", "my-agent", "Hello").stdout.strip()
    platform.agent("stop", "my-agent")
    assert "agent run my-agent:1.2.0" in platform.agent("call", "my-agent", "Hello", code=10 + 9).stderr
    platform.agent("rmi", "my-agent:1.2.0")


def test_the_embedded_model_writes_text(platform: Platform) -> None:
    platform.agent("run", "text-generator:latest")
    text = platform.agent("call", "text-generator", "What colour is the sky?", "--max-tokens", "24").stdout
    assert "blue" in text
    with Client(platform.grpc_address) as client:
        request = {
            "service": "TextGenerationService",
            "method": "GenerateText",
            "data": {"prompt": "Write a poem about AI", "temperature": 0.7, "max_tokens": 20},
        }
        response = client.call_agent("text-generator-01", request)
    assert response["tokens_used"] == 20
    assert 0 < response["confidence"] <= 1
    assert len(response["text"]) > 20
    platform.agent("stop", "text-generator")


def test_tokens_are_streamed_while_they_are_made(platform: Platform) -> None:
    with Client(platform.grpc_address) as client:
        pieces = list(client.stream_text("mock-ai", "hello"))
    assert len(pieces) == 7
    assert "".join(piece.text for piece in pieces) == "Hello! How can I help you today?"
    assert pieces[-1].tokens_used == 7
    assert pieces[-1].confidence == pytest.approx(0.9)


def test_the_seeds_health_document(platform: Platform) -> None:
    with urllib.request.urlopen(f"{platform.http_address}/health", timeout=10) as response:
        text = response.read().decode()
    assert re.search(r'"status":\s*"healthy"', text)
    for field in ("uptime", "requests_processed", "memory_usage", "cpu_usage"):
        assert f'"{field}"' in text


def test_metrics_count_an_agents_calls(platform: Platform) -> None:
    for _ in range(3):
        platform.agent("call", "echo", "count me")
    with urllib.request.urlopen(f"{platform.http_address}/metrics", timeout=10) as response:
        text = response.read().decode()
    ours = [line for line in text.splitlines() if 'agent="echo"' in line and "calls_total" in line]
    assert any(float(line.rsplit(" ", 1)[1]) >= 3 for line in ours), text


def _worker_samples(platform: Platform, worker_id: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{platform.http_address}/metrics", timeout=10) as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    every = [sample for family in families for sample in family.samples]
    return {each.name: each.value for each in every if each.labels.get("worker") == worker_id}


def test_agent_metrics_and_prometheus_agree(platform: Platform) -> None:
    before = _worker_samples(platform, "echo-01")
    (shown,) = json.loads(platform.agent("metrics", "echo-01", "--json").stdout)["workers"]
    after = _worker_samples(platform, "echo-01")
    for name, exact in (("memory_limit_bytes", shown["memory_limit_bytes"]), ("pids_limit", shown["pids_limit"])):
        assert before[f"uapi_worker_{name}"] == after[f"uapi_worker_{name}"] == exact
    # What only grows, between the looks before and after.
    for name, grows in (
        ("cpu_seconds_total", shown["cpu_seconds"]),
        ("memory_peak_bytes", shown["memory_peak_bytes"]),
        ("network_received_bytes_total", shown["network_received_bytes"]),
        ("throttled_periods_total", shown["throttled_periods"]),
        ("restarts_total", shown["restarts"]),
    ):
        assert before[f"uapi_worker_{name}"] <= grows <= after[f"uapi_worker_{name}"]
    assert time.time() - after["uapi_worker_start_time_seconds"] == pytest.approx(shown["uptime_seconds"], abs=10)
    assert shown["memory_share_bytes"] > 0


LOGGING_AGENT = """
import logging
from agentruntime import Agent
class MyAgent(Agent):
    async def generate(self, prompt, *, temperature, max_tokens):
        logging.getLogger("mine").warning("heard %s", prompt)
        return prompt
"""


def test_the_trace_goes_from_the_client_through_envoy_to_the_workers_log(platform: Platform, project: Path) -> None:
    (project / "agent.yaml").write_text("name: logging-agent\nversion: 1.0.0\nentrypoint: agent:MyAgent\n")
    (project / "agent.py").write_text(LOGGING_AGENT)
    platform.agent("build", str(project))
    platform.agent("run", "logging-agent:1.0.0")
    context = trace.TraceContext.new()
    token = trace.current.set(context)
    try:
        with Client(platform.grpc_address) as client:
            client.generate_text("logging-agent", "traced")
    finally:
        trace.current.reset(token)
    printed = platform.agent("logs", "logging-agent", "--level", "warning", "--output", "json").stdout
    lines = [json.loads(json.loads(line)["line"]) for line in printed.splitlines()]
    (line,) = [line for line in lines if line["event"] == "heard traced"]
    assert line["trace_id"] == context.trace_id
    assert (line["worker_id"], line["agent"], line["level"]) == ("logging-agent-01", "logging-agent", "warning")
    # Envoy writes its log out every few seconds.
    access_log = platform.home.logs / "envoy-access.log"
    until(lambda: context.trace_id in access_log.read_text(), timeout_s=20)
    platform.agent("stop", "logging-agent")


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent to notice does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_nothing_is_left_after_down() -> None:
    with tempfile.TemporaryDirectory(prefix="uapi-down-") as directory:
        own = Platform(Home(Path(directory, "home")), "", "")
        own.agent("up", "--grpc-port", "0", "--http-port", "0")
        own.agent("run", "echo:latest", "--replicas", "3")
        supervisor = next(int(p["pid"]) for p in own.json("status")["processes"] if p["name"] == "supervisor")
        family = [supervisor, *(child.pid for child in psutil.Process(supervisor).children(recursive=True))]
        family += [int(worker["pid"]) for worker in own.workers("echo")]
        own.agent("down")
        assert [pid for pid in family if alive(pid)] == []
        assert directory not in Path("/proc/mounts").read_text()
