"""Settings and their precedence."""

import json
from pathlib import Path
from typing import Any

import pytest
from agentruntime import RuntimeConfig
from agentruntime.errors import FailedPrecondition, InvalidArgument

# The user's document, as it is.
DOCUMENT_FILE = """\
# runtime-config.yaml
runtime:
  mode: container
  resources:
    memory: 2GB
    cpu: 2
    gpu: 1
  health_check:
    interval: 30s
    timeout: 10s
    retries: 3
  scaling:
    auto_scale: true
    min_replicas: 2
    max_replicas: 10
    cpu_threshold: 80
"""
DOCUMENT_ENVIRONMENT = {
    "AGENT_RUNTIME_MODE": "container",
    "AGENT_MEMORY_LIMIT": "2GB",
    "AGENT_CPU_LIMIT": "2",
    "AGENT_GPU_ENABLED": "true",
    "AGENT_LOG_LEVEL": "INFO",
    "UAPI_ENDPOINT": "uapi.example.com:50051",
    "UAPI_AUTH_TOKEN": "your-token",
    "UAPI_TIMEOUT": "30s",
}


def write(folder: Path, text: str, name: str = "runtime-config.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_the_document_s_file(tmp_path: Path) -> None:
    write(tmp_path, DOCUMENT_FILE)
    config = RuntimeConfig.load(directory=tmp_path, environ={})
    assert config.mode == "container"
    assert (config.resources.memory_bytes, config.resources.cpu_millis, config.resources.gpus) == (2 * 10**9, 2000, 1)
    health = config.health_check
    assert (health.interval_s, health.timeout_s, health.retries) == (30.0, 10.0, 3)
    assert (config.scaling.auto_scale, config.scaling.max_replicas) == (True, 10)


def test_the_document_s_environment() -> None:
    config = RuntimeConfig.from_env(DOCUMENT_ENVIRONMENT)
    assert config.mode == "container"
    assert config.resources.memory_limit_bytes == 2 * 10**9
    assert (config.resources.cpu_limit_millis, config.resources.gpus) == (2000, 1)
    assert config.log_level == "INFO"
    assert (config.uapi.endpoint, config.uapi.auth_token) == ("uapi.example.com:50051", "your-token")
    assert config.uapi.timeout_s == 30.0
    assert "your-token" not in repr(config)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("uapi: {endpoint: 'https://stranger.example:1'}", "says where credentials go (uapi)"),
        ("runtime: {uapi: {tls_ca: ca.pem}}", "says where credentials go (uapi)"),
        ("runtime: {permissions: {egress: ['a.example:443']}}", "says what agents may use (permissions)"),
    ],
)
def test_a_file_that_nobody_named_decides_nothing_about_credentials(tmp_path: Path, file: str, said: str) -> None:
    path = write(tmp_path, file)
    with pytest.raises(InvalidArgument) as caught:
        RuntimeConfig.load(directory=tmp_path, environ={})
    assert said in caught.value.message
    assert "say --config runtime-config.yaml if it is yours" in caught.value.message
    assert RuntimeConfig.load(file=path, directory=tmp_path, environ={}) != RuntimeConfig()


FILE = "runtime: {resources: {memory_limit: 1GB, cpu: 1}, log_level: DEBUG}\n"
LIMIT = ("resources", "memory_limit_bytes")


@pytest.mark.parametrize(
    ("file", "environ", "flags", "path", "expected"),
    [
        ("", {}, {}, LIMIT, None),
        (FILE, {}, {}, LIMIT, 10**9),
        (FILE, {"AGENT_MEMORY_LIMIT": "2GB"}, {}, LIMIT, 2 * 10**9),
        (FILE, {"AGENT_MEMORY_LIMIT": ""}, {}, LIMIT, 10**9),
        (
            FILE,
            {"AGENT_MEMORY_LIMIT": "2GB"},
            {"resources.memory_limit": ("--memory-limit", "3GB")},
            LIMIT,
            3 * 10**9,
        ),
        ("", {"AGENT_MEMORY_LIMIT": "2GB"}, {}, LIMIT, 2 * 10**9),
        (FILE, {}, {"resources.memory": ("--memory", "1MB")}, ("resources", "cpu_millis"), 1000),
        (FILE, {"AGENT_LOG_LEVEL": "warning"}, {}, ("log_level",), "WARNING"),
        (FILE, {"AGENT_LOG_LEVEL": "warning"}, {"log_level": ("--log-level", "error")}, ("log_level",), "ERROR"),
        ("runtime: {resources: {gpu: 2}}", {"AGENT_GPU_ENABLED": "false"}, {}, ("resources", "gpus"), 0),
        ("", {"AGENT_GPU_ENABLED": "true"}, {"resources.gpu": ("--gpu", 2)}, ("resources", "gpus"), 2),
        ("", {}, {}, ("uapi", "timeout_s"), 30.0),
        ("uapi: {timeout: 1m}", {}, {}, ("uapi", "timeout_s"), 60.0),
        ("uapi: {timeout: 1m}", {"UAPI_TIMEOUT": "5s"}, {}, ("uapi", "timeout_s"), 5.0),
        ("", {}, {"network": ("--network", "none")}, ("network",), "isolated"),
    ],
)
def test_precedence(
    tmp_path: Path,
    *,
    file: str,
    environ: dict[str, str],
    flags: dict[str, Any],
    path: tuple[str, ...],
    expected: Any,
) -> None:
    path_of_file = write(tmp_path, file) if file else None
    value: Any = RuntimeConfig.load(file=path_of_file, directory=tmp_path, environ=environ, flags=flags)
    for key in path:
        value = getattr(value, key)
    assert value == expected


@pytest.mark.parametrize(
    ("file", "environ", "flags", "says"),
    [
        (
            "runtime: {resources: {memory: 2 gigs}}",
            {},
            {},
            "runtime-config.yaml: runtime.resources.memory: '2 gigs' is",
        ),
        ("runtime: {resorces: {}}", {}, {}, "runtime-config.yaml: runtime.resorces is not a setting"),
        ("modes: native", {}, {}, "runtime-config.yaml: modes is not a setting"),
        ("runtime: {mode: vm}", {}, {}, "runtime-config.yaml: runtime.mode: input should be 'native'"),
        ("runtime: 5", {}, {}, "runtime must be a mapping"),
        ("- 1", {}, {}, "runtime-config.yaml must be a mapping"),
        ("runtime: [", {}, {}, "runtime-config.yaml is not YAML"),
        ("mode: native\nruntime: {mode: native}", {}, {}, "mode stands twice"),
        ("runtime: {scaling: {min_replicas: many}}", {}, {}, "runtime.scaling.min_replicas"),
        ("", {"AGENT_MEMORY_LIMIT": "2 gigs"}, {}, "AGENT_MEMORY_LIMIT: '2 gigs' is not a size"),
        ("", {"AGENT_GPU_ENABLED": "maybe"}, {}, "AGENT_GPU_ENABLED: 'maybe' is neither true nor false"),
        ("", {"AGENT_LOG_LEVEL": "LOUD"}, {}, "AGENT_LOG_LEVEL: input should be 'DEBUG'"),
        ("", {"UAPI_TIMEOUT": "0s"}, {}, "UAPI_TIMEOUT: input should be greater than 0"),
        ("", {}, {"resources.memory_limit": ("--memory-limit", "lots")}, "--memory-limit: 'lots' is not a size"),
        ("", {}, {"resources.cpu": ("--cpu", "fast")}, "--cpu: 'fast' is not a CPU share"),
        ("", {}, {"network": ("--network", "bridge")}, "--network: input should be 'isolated' or 'host'"),
        ("", {}, {"scaling.min_replicas": ("--min", -1)}, "--min: input should be greater than or equal to 0"),
        ("", {}, {"health_check.interval": ("--health-interval", "often")}, "--health-interval: 'often' is not a"),
        ("", {}, {"log_level": ("--log-level", "loud")}, "--log-level: input should be"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_source(
    tmp_path: Path, file: str, environ: dict[str, str], flags: dict[str, Any], says: str
) -> None:
    if file:
        write(tmp_path, file)
    with pytest.raises(InvalidArgument) as caught:
        RuntimeConfig.load(directory=tmp_path, environ=environ, flags=flags)
    assert says in caught.value.message
    assert "\n" not in caught.value.message


def test_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="cannot be read"):
        RuntimeConfig.load(file=tmp_path / "none.yaml", environ={})
    path = write(tmp_path, "runtime: {mode: native}", "other.yaml")
    assert RuntimeConfig.load(file=path, environ={}).mode == "native"


def test_dict_json_and_keywords_say_the_same(tmp_path: Path) -> None:
    data = {
        "app_name": "MyApp",
        "app_version": "1.0.0",
        "app_environment": "production",
        "log_level": "INFO",
        "custom_config": {"my_setting": "value", "another_setting": 123},
    }
    path = write(tmp_path, json.dumps(data), "config.json")
    expected = RuntimeConfig(
        app_name="MyApp",
        app_version="1.0.0",
        app_environment="production",
        log_level="INFO",
        custom_config={"my_setting": "value", "another_setting": 123},
    )
    assert RuntimeConfig.from_dict(data) == RuntimeConfig.from_json(path) == expected


@pytest.mark.parametrize("text", ["{", "[]", '{"app_nmae": "x"}'])
def test_json_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidArgument):
        RuntimeConfig.from_json(write(tmp_path, text, "config.json"))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"mode": "serverless"}, "mode 'serverless' is not available"),
    ],
)
def test_what_was_written_and_cannot_be_done_is_refused(data: dict[str, Any], says: str) -> None:
    with pytest.raises(FailedPrecondition, match=says):
        RuntimeConfig.from_dict(data).check_supported()


@pytest.mark.parametrize(
    "data", [{}, {"mode": "native"}, {"mode": "container"}, {"scaling": {"auto_scale": True, "max_replicas": 3}}]
)
def test_what_can_be_done_passes(data: dict[str, Any]) -> None:
    RuntimeConfig.from_dict(data).check_supported()
