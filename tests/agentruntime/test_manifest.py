"""`agent.yaml`."""

from pathlib import Path

import pytest
import yaml
from agentruntime.errors import InvalidManifest
from agentruntime.manifest import AgentManifest

MINIMAL = "name: my-agent\nversion: 1.2.0\nentrypoint: agent:MyAgent\n"


def test_a_minimal_one_has_the_documented_defaults() -> None:
    manifest = AgentManifest.parse(MINIMAL)
    assert (manifest.name, manifest.version, manifest.entrypoint) == ("my-agent", "1.2.0", "agent:MyAgent")
    assert (manifest.concurrency, manifest.timeout_s, manifest.idempotent) == (64, 60.0, True)
    assert manifest.resources.memory_bytes is None
    assert manifest.health.retries == 3


def test_units_are_read() -> None:
    manifest = AgentManifest.parse(
        MINIMAL + "resources: {memory: 2GB, cpu: 500m, memory_limit: 3GiB, cpu_limit: 1.5, gpu: 1, pids: 64}\n"
        "health: {interval: 5s, timeout: 250ms, retries: 2, start_timeout: 2m}\ntimeout: 1m\n"
    )
    resources = manifest.resources
    assert (resources.memory_bytes, resources.cpu_millis) == (2_000_000_000, 500)
    assert (resources.memory_limit_bytes, resources.cpu_limit_millis) == (3 * 2**30, 1500)
    assert (resources.gpus, resources.pids_limit) == (1, 64)
    assert (manifest.health.interval_s, manifest.health.timeout_s, manifest.health.start_timeout_s) == (5, 0.25, 120)
    assert manifest.timeout_s == 60


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must be a mapping"),
        ("- a\n", "must be a mapping"),
        ("name: [", "not YAML"),
        ("name: my-agent\nversion: 1.0.0\n", "entrypoint: is missing"),
        (MINIMAL + "nmae: x\n", "nmae: is not a setting"),
        (MINIMAL.replace("my-agent", "My_Agent"), "is not an agent name"),
        (MINIMAL.replace("agent:MyAgent", "../agent:MyAgent"), "entrypoint"),
        (MINIMAL.replace("agent:MyAgent", "agent"), "entrypoint"),
        (MINIMAL + "resources: {memory: 2 gigs}\n", "resources.memory: '2 gigs' is not a size"),
        (MINIMAL + "resources: {memory: true}\n", "resources.memory: write a number with a unit"),
        (MINIMAL + "resources: 2GB\n", "resources"),
        (MINIMAL + "services: MyService\n", "services"),
        (MINIMAL + "concurrency: 0\n", "concurrency"),
        (MINIMAL + "health: {interval: 0s}\n", "health.interval"),
        (MINIMAL + "logging: {max_size: 99kB}\n", "logging.max_size"),
        (MINIMAL + "logging: {aggregator: 'fluentd://host:65536'}\n", "logging.aggregator: write fluentd"),
        (
            MINIMAL + "permissions: {secrets: [my/openai]}\n",
            "permissions.secrets.0: 'my/openai' is not the name of a secret",
        ),
        (MINIMAL + "permissions: {secrets: ['*', '']}\n", "permissions.secrets.1: '' is not the name of a secret"),
        (MINIMAL + "permissions: {egress: [none, 'a:1']}\n", "permissions.egress: 'none' stands for no longer any"),
        (MINIMAL + "access: {keys: [none, ci]}\n", "access.keys: 'none' stands for no longer any"),
        (MINIMAL + "conversations: {ttl: 30m}\n", "conversations.ttl: is less than 1h; 0 is no bound"),
        (MINIMAL + "conversations: {max_events: 9}\n", "conversations.max_events: is less than 10"),
        (MINIMAL + "conversations: {max_bytes: 9kB}\n", "conversations.max_bytes: is less than 10kB"),
        (MINIMAL + "conversations: {idle: 0}\n", "conversations.idle"),
        (MINIMAL + "conversations: {when_busy: wait}\n", "conversations.when_busy"),
        (MINIMAL + "python: {requirements: requests}\n", "python.requirements"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text: str, says: str) -> None:
    with pytest.raises(InvalidManifest) as caught:
        AgentManifest.parse(text)
    assert says in caught.value.message
    assert "\n" not in caught.value.message


def test_load(tmp_path: Path) -> None:
    with pytest.raises(InvalidManifest, match="agent init"):
        AgentManifest.load(tmp_path)
    (tmp_path / "agent.yaml").write_bytes(b"name: \xff")
    with pytest.raises(InvalidManifest, match="UTF-8"):
        AgentManifest.load(tmp_path)
    (tmp_path / "agent.yaml").write_text(MINIMAL)
    assert AgentManifest.load(tmp_path).name == "my-agent"


def test_the_page_s_example_has_every_key() -> None:
    page = (Path(__file__).parents[2] / "docs/agents.md").read_text()
    text = page.split("## agent.yaml")[1].split("```")[1].removeprefix("yaml")
    manifest = AgentManifest.parse(text)
    assert set(yaml.safe_load(text)) == {field.alias or name for name, field in AgentManifest.model_fields.items()}
    for section in (manifest.scaling, manifest.traffic, manifest.cache, manifest.conversations, manifest.health):
        assert section.model_fields_set == set(type(section).model_fields)
