"""`RuntimeConfig` as `AgentSettings`."""

from typing import Any

from agentruntime import RuntimeConfig, wire
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_pb2
from google.protobuf.duration_pb2 import Duration

EVERYTHING = {
    "resources": {"memory": "2GB", "cpu": 2, "memory_limit": "3GB", "cpu_limit": 3, "gpu": 1, "pids": 99},
    "health_check": {
        "interval": "1s",
        "timeout": "2s",
        "retries": 4,
        "start_timeout": "5s",
        "failure_action": "ignore",
    },
    "restart_policy": "on-failure",
    "scaling": {
        "auto_scale": True,
        "min_replicas": 1,
        "max_replicas": 2,
        "cpu_threshold": 50,
        "target_concurrency": 3,
        "idle_timeout": "1m",
    },
    "traffic": {"load_balancer": "sticky", "circuit_breaker": True, "failure_threshold": 7},
    "cache": {"enabled": True, "ttl": "1500ms", "size": "1MB"},
    "conversations": {
        "when_busy": "reject",
        "on_worker_lost": "report",
        "ttl": "30d",
        "max_events": 10_000,
        "max_bytes": "10MB",
        "idle": "90s",
    },
    "concurrency": 8,
    "queue": 9,
    "compression": "gzip",
    "optimize_throughput": True,
    "debug": True,
    "network": "host",
    "venv": "/venv",
    "env": {"A": "b"},
    "log_level": "DEBUG",
    "mode": "container",
    "isolation": {"security_context": "restricted", "read_only_root": True, "network_limit": "1Mbps"},
    "logging": {"format": "json", "aggregator": "fluentd", "retention": "1d", "max_size": "1MB"},
    "permissions": {
        "agents": ["other"],
        "models": ["smollm2"],
        "topics": ["orders"],
        "tools": ["search"],
        "egress": ["api.example.com:443"],
        "secrets": ["openai"],
    },
    "access": {"tls": True, "keys": ["ci"], "oauth2_client_id": "chat"},
}


def unset(message: Any, prefix: str = "") -> list[str]:
    """The fields of a message, and of those within it, that say nothing."""
    said = {field.name for field, _ in message.ListFields()}
    missing = [prefix + field.name for field in message.DESCRIPTOR.fields if field.name not in said]
    for name in said:
        if getattr(getattr(message, name), "DESCRIPTOR", None) not in (None, Duration.DESCRIPTOR):
            missing += unset(getattr(message, name), f"{prefix}{name}.")
    return missing


def test_everything_that_can_be_set_is_sent() -> None:
    assert unset(wire.agent_settings(RuntimeConfig.from_dict(EVERYTHING))) == []


def test_nothing_that_was_not_set_is_sent() -> None:
    assert wire.agent_settings(RuntimeConfig()) == pool_pb2.AgentSettings()


def test_durations() -> None:
    assert wire.duration(1.5).ToMilliseconds() == 1500
    assert wire.agent_settings(RuntimeConfig.from_dict(EVERYTHING)).cache.ttl.ToMilliseconds() == 1500


def test_off_is_said() -> None:
    off = RuntimeConfig.from_dict(
        {
            "traffic": {"circuit_breaker": False},
            "cache": {"enabled": False},
            "conversations": {"ttl": 0, "max_events": 0, "max_bytes": 0},
        }
    )
    settings = wire.agent_settings(off)
    assert (settings.traffic.failure_threshold, settings.cache.max_bytes) == (0, 0)
    assert settings.traffic.HasField("failure_threshold")
    assert settings.cache.HasField("max_bytes")
    assert {field.name for field, _ in settings.conversations.ListFields()} == {"ttl", "max_events", "max_bytes"}


def test_no_longer_any_is_said() -> None:
    none = RuntimeConfig.from_dict(
        {"permissions": {"egress": ["none"]}, "access": {"keys": ["none"], "oauth2_client_id": "none"}}
    )
    settings = wire.agent_settings(none)
    assert list(settings.permissions.egress) == list(settings.access.keys) == ["none"]
    assert settings.access.oauth2_client_id == "none"
