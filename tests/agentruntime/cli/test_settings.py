"""The flags that say how an agent runs: what each sends, and every `agent …` line of the user's document."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_pb2
from agentruntime.cli.settings import ALL, taken
from agentruntime.config import ENVIRONMENT
from google.protobuf import json_format

from tests.agentruntime.cli.conftest import Agent
from tests.agentruntime.platform_services import Record
from tests.agentruntime.test_config import DOCUMENT_FILE

ROOT = Path(__file__).parents[3]
MB, GB = 10**6, 10**9
RUN = "agent run my-agent:latest"


def settings(**fields: Any) -> dict[str, Any]:
    return {"settings": fields}


# Lines of the document that this version does, with what they ask of the pool.
DONE: list[tuple[str, dict[str, Any]]] = [
    (RUN, {}),
    (f"{RUN} --memory 2GB --cpu 2", settings(resources={"memory_bytes": 2 * GB, "cpu_millis": 2000})),
    (f"{RUN} --memory 1GB", settings(resources={"memory_bytes": GB})),
    (f"{RUN} --cpu 2", settings(resources={"cpu_millis": 2000})),
    (f"{RUN} --gpu 1", settings(resources={"gpus": 1})),
    (f"{RUN} --native", settings(mode="RUNTIME_MODE_NATIVE")),
    (f"{RUN} --container", settings(mode="RUNTIME_MODE_CONTAINER")),
    (f"{RUN} --security-context restricted", settings(isolation={"security_context": "SECURITY_CONTEXT_RESTRICTED"})),
    (f"{RUN} --read-only-root", settings(isolation={"read_only_root": True})),
    (f"{RUN} --network-limit 100Mbps", settings(isolation={"network_limit_bps": "100000000"})),
    (f"{RUN} --network-limit 0", settings(isolation={"network_limit_bps": "0"})),
    (f"{RUN} --venv /venv", settings(venv="/venv")),
    (f"{RUN} --network host", settings(network="NETWORK_MODE_HOST")),
    (f"{RUN} --network isolated", settings(network="NETWORK_MODE_ISOLATED")),
    (f"{RUN} --memory-limit 2GB", settings(resources={"memory_limit_bytes": 2 * GB})),
    (f"{RUN} --cpu-limit 2", settings(resources={"cpu_limit_millis": 2000})),
    (f"{RUN} --cache-enabled", settings(cache={"max_bytes": 100 * MB})),
    (f"{RUN} --optimize-throughput", settings(serving={"optimize_throughput": True})),
    (f"{RUN} --compression gzip", settings(serving={"compression": "COMPRESSION_GZIP"})),
    (f"{RUN} --load-balancer round-robin", settings(traffic={"load_balancer": "LOAD_BALANCER_ROUND_ROBIN"})),
    (f"{RUN} --load-balancer sticky", settings(traffic={"load_balancer": "LOAD_BALANCER_STICKY"})),
    (f"{RUN} --load-balancer health-based", settings(traffic={"load_balancer": "LOAD_BALANCER_HEALTH_BASED"})),
    (f"{RUN} --cache-responses", settings(cache={"max_bytes": 100 * MB})),
    (f"{RUN} --cache-ttl 300s --cache-size 100MB", settings(cache={"max_bytes": 100 * MB, "ttl": "300s"})),
    (f"{RUN} --debug", settings(serving={"debug": True})),
    (f"{RUN} --restart-policy always", settings(restart_policy="RESTART_POLICY_ALWAYS")),
    (
        f"{RUN} --health-check-failure-action restart",
        settings(health_check={"failure_action": "HEALTH_FAILURE_ACTION_RESTART"}),
    ),
    (f"{RUN} --circuit-breaker --failure-threshold 5", settings(traffic={"failure_threshold": 5})),
    ("agent stop my-agent-01", {"name": "my-agent-01"}),
    ("agent restart my-agent-01", {"name": "my-agent-01"}),
    ("agent update my-agent-01 --image my-agent:1.1.0", {"name": "my-agent-01", "image": "my-agent:1.1.0"}),
    ("agent scale my-agent --replicas 5", {"agent": "my-agent", "replicas": 5}),
    (
        "agent scale my-agent --memory 4GB --cpu 4",
        {"agent": "my-agent", "resources": {"memory_bytes": 4 * GB, "cpu_millis": 4000}},
    ),
    (
        "agent scale my-agent --auto-scale --min 2 --max 10 --cpu-threshold 80",
        {
            "agent": "my-agent",
            "scaling": {"auto_scale": True, "min_replicas": 2, "max_replicas": 10, "cpu_threshold_percent": 80.0},
        },
    ),
    (f"{RUN} --log-format json", settings(log_format="LOG_FORMAT_JSON")),
    (f"{RUN} --log-aggregator fluentd", settings(logging={"aggregator": "fluentd://localhost:24224"})),
    (f"{RUN} --log-retention 30d", settings(logging={"retention": "2592000s"})),
    ("agent logs my-agent-01 --follow", {"name": "my-agent-01", "follow": True}),
    ("agent logs my-agent-01 --level debug", {"name": "my-agent-01", "level": "DEBUG"}),
]

# Those that it does not do yet: each is refused with a sentence, and nothing is sent.
REFUSED = [
    "agent deploy my-agent:latest --platform aws-lambda",
    "agent deploy my-agent:latest --platform kubernetes --helm",
]

# What else the flags say, as `agent run` and, where the verb takes the flag, as `agent update`.
FLAGS: list[tuple[str, dict[str, Any]]] = [
    ("--api-key ci --api-key cd", settings(access={"keys": ["ci", "cd"]})),
    ("--tls", settings(access={"tls": True})),
    ("--no-tls", settings(access={"tls": False})),
    ("--oauth2-client-id your-client-id", settings(access={"oauth2_client_id": "your-client-id"})),
    (
        "--egress api.example.com:443 --egress localhost:5432",
        settings(permissions={"egress": ["api.example.com:443", "localhost:5432"]}),
    ),
    ("-e A=b=c --env D=", settings(env={"A": "b=c", "D": ""})),
    ("--log-level debug", settings(log_level="DEBUG")),
    ("--restart-policy on-failure", settings(restart_policy="RESTART_POLICY_ON_FAILURE")),
    ("--restart-policy no", settings(restart_policy="RESTART_POLICY_NO")),
    (
        "--health-interval 2s --health-timeout 500ms --health-retries 4 --start-timeout 2m",
        settings(
            health_check={
                "interval_seconds": 2.0,
                "timeout_seconds": 0.5,
                "retries": 4,
                "start_timeout_seconds": 120.0,
            }
        ),
    ),
    (
        "--health-check-failure-action stop",
        settings(health_check={"failure_action": "HEALTH_FAILURE_ACTION_STOP"}),
    ),
    (
        "--no-auto-scale --target-concurrency 1.5 --idle-timeout 90s",
        settings(scaling={"auto_scale": False, "target_concurrency": 1.5, "idle_timeout": "90s"}),
    ),
    ("--load-balancer least-request", settings(traffic={"load_balancer": "LOAD_BALANCER_LEAST_REQUEST"})),
    ("--circuit-breaker", settings(traffic={"failure_threshold": 5})),
    ("--failure-threshold 3", settings(traffic={"failure_threshold": 3})),
    ("--no-circuit-breaker", settings(traffic={"failure_threshold": 0})),
    ("--concurrency 8 --queue 0", settings(serving={"concurrency": 8, "queue": 0})),
    ("--compression none", settings(serving={"compression": "COMPRESSION_NONE"})),
    ("--no-optimize-throughput --no-debug", settings(serving={"optimize_throughput": False, "debug": False})),
    ("--no-cache-responses", settings(cache={"max_bytes": 0})),
    ("--cache-responses --cache-size 5MB", settings(cache={"max_bytes": 5 * MB})),
    (
        "--when-busy interrupt --on-worker-lost report --conversation-idle 5m",
        settings(
            conversations={
                "when_busy": "WHEN_BUSY_INTERRUPT",
                "on_worker_lost": "ON_WORKER_LOST_REPORT",
                "idle": "300s",
            }
        ),
    ),
    (
        "--conversation-ttl 30d --conversation-events 10000 --conversation-bytes 10MB",
        settings(conversations={"ttl": "2592000s", "max_events": "10000", "max_bytes": 10 * MB}),
    ),
    ("--conversation-ttl 0", settings(conversations={"ttl": "0s"})),
    ("--log-max-size 5MB --log-aggregator none", settings(logging={"max_bytes": 5 * MB, "aggregator": "none"})),
    ("--allow-unenforced --gpu 0", {"allow_unenforced": True, "settings": {"resources": {"gpus": 0}}}),
]


def sent(record: Record) -> dict[str, Any]:
    """The request that asked for something, without what is the same in all."""
    data: dict[str, Any] = json_format.MessageToDict(record.requests[-1], preserving_proto_field_name=True)
    # protobuf's JSON writes 64-bit integers as strings.
    numbers = {"memory_bytes", "memory_limit_bytes", "max_bytes"}

    def plain(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: plain(inner, name) for name, inner in value.items()}
        return int(value) if key in numbers else value

    wanted: dict[str, Any] = plain(data)
    if isinstance(record.requests[-1], pool_pb2.RunAgentRequest):
        assert wanted.pop("image") == "my-agent:latest"
    return {name: value for name, value in wanted.items() if value != {}}


@pytest.mark.parametrize(("line", "asks"), DONE, ids=[line for line, _ in DONE])
def test_a_line_of_the_document_asks_for_what_it_says(
    agent: Agent, record: Record, line: str, asks: dict[str, Any]
) -> None:
    result = agent(*shlex.split(line)[1:])
    assert (result.status, sent(record)) == (0, asks), result.err


@pytest.mark.parametrize("line", REFUSED)
def test_a_line_of_the_document_that_is_not_done_yet_is_refused(agent: Agent, record: Record, line: str) -> None:
    result = agent(*shlex.split(line)[1:])
    assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
    assert result.err.startswith("error: No such ")
    assert record.requests == []


@pytest.mark.parametrize(("flags", "asks"), FLAGS, ids=[flags for flags, _ in FLAGS])
def test_flags(agent: Agent, record: Record, flags: str, asks: dict[str, Any]) -> None:
    assert agent("run", "my-agent:latest", *flags.split()).status == 0
    assert sent(record) == asks
    assert agent("update", "my-agent", *flags.split()).status == 0
    assert sent(record) == {"name": "my-agent", **asks}


def test_the_document_s_file(agent: Agent, record: Record) -> None:
    Path("runtime-config.yaml").write_text(DOCUMENT_FILE)
    assert agent("run", "my-agent:latest", "--max", "4").status == 0
    assert sent(record) == settings(
        mode="RUNTIME_MODE_CONTAINER",
        resources={"memory_bytes": 2 * GB, "cpu_millis": 2000, "gpus": 1},
        health_check={"interval_seconds": 30.0, "timeout_seconds": 10.0, "retries": 3},
        scaling={"auto_scale": True, "min_replicas": 2, "max_replicas": 4, "cpu_threshold_percent": 80.0},
    )
    # These say what shall change, and nothing else.
    assert agent("update", "my-agent", "--cpu", "1").status == 0
    assert sent(record) == {"name": "my-agent", **settings(resources={"cpu_millis": 1000})}
    assert agent("scale", "my-agent", "--replicas", "1").status == 0
    assert sent(record) == {"agent": "my-agent", "replicas": 1}


def test_a_time_to_live_alone_says_nothing_of_how_much_is_kept(agent: Agent, record: Record) -> None:
    agent("run", "my-agent:latest", "--cache-ttl", "1m")
    assert sent(record) == settings(cache={"ttl": "60s"})
    agent("update", "my-agent", "--cache-ttl", "1m")
    assert sent(record) == {"name": "my-agent", **settings(cache={"ttl": "60s"})}


@pytest.mark.parametrize(
    ("line", "status", "says"),
    [
        ("run x --health-interval often", 13, "--health-interval: 'often' is not a duration"),
        ("run x --min -1", 13, "--min: input should be greater than or equal to 0"),
        ("scale x --max 0", 13, "--max: input should be greater than or equal to 1"),
        ("scale x --cpu-threshold 120", 13, "--cpu-threshold: input should be less than or equal to 100"),
        ("update x --cache-size much", 13, "--cache-size: 'much' is not a size"),
        ("update x --failure-threshold 0", 13, "--failure-threshold: input should be greater than or equal to 1"),
        ("update x --conversation-ttl 1m", 13, "--conversation-ttl: is less than 1h"),
        ("update x --env A", 13, "--env: 'A' is not NAME=VALUE"),
        ("update x", 13, "what should change?"),
        ("scale x", 13, "scale it how?"),
        ("run x --restart-policy sometimes", 2, "--restart-policy"),
        ("run x --load-balancer random", 2, "--load-balancer"),
        ("scale x --replicas many", 2, "--replicas"),
        ("scale x --network host", 2, "No such option: --network"),
        ("update x --replicas 3", 2, "No such option: --replicas"),
    ],
)
def test_what_cannot_be_is_said_with_the_flag(
    agent: Agent, record: Record, line: str, status: int, says: str
) -> None:
    result = agent(*line.split())
    assert (result.status, result.out, result.err.count("\n")) == (status, "", 1)
    assert says in result.err
    assert record.requests == []


def test_the_documentation_has_every_flag_and_setting() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    rows = {row.split("|")[1].strip(" `"): row for row in page.splitlines() if row.startswith("| `")}
    for flag in ALL:
        assert f"`{flag.written}`" in rows[flag.path].split("|")[2]
    assert all(f"`{variable}`" in page for variable in ENVIRONMENT)
    verbs = (ROOT / "docs/cli.md").read_text()
    assert [flag.written for flag in ALL if f"`{flag.written}" not in verbs] == []


def test_only_verbs_that_take_flags_have_them() -> None:
    def command(*, flags: Any, last: int = 0) -> None:
        raise AssertionError

    names = [set(taken(verb)(command).__annotations__) for verb in ("run", "update", "scale")]
    assert names[0] > names[1]
    assert {"replicas", "memory", "min"} <= names[2]
    assert "env" not in names[2]
