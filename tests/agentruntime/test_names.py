"""Names of agents, workers and images."""

import re

import pytest
from agentruntime import names
from agentruntime.errors import InvalidArgument
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize("name", ["a", "my-agent", "7seas", "a" * 63, "my-agent-01"])
def test_agent_name(name: str) -> None:
    assert names.check_agent_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a.b", "a" * 64, "ä", "../etc", "a\n", "a b"])
def test_agent_name_refused(name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        names.check_agent_name(name)
    assert caught.value.reason == "INVALID_NAME"


@given(st.text(max_size=70))
def test_a_name_that_passes_is_a_dns_label(name: str) -> None:
    try:
        names.check_agent_name(name)
    except InvalidArgument:
        return
    assert len(name) <= 63
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name)


def test_worker_id() -> None:
    assert names.worker_id("my-agent", 1) == "my-agent-01"
    assert names.worker_id("my-agent", 100) == "my-agent-100"


@pytest.mark.parametrize(
    ("text", "name", "tag", "digest"),
    [
        ("echo", "echo", "latest", ""),
        ("my-agent:1.2.0", "my-agent", "1.2.0", ""),
        ("my-agent@sha256:" + "0" * 64, "my-agent", "latest", "sha256:" + "0" * 64),
        ("team/my-agent", "team/my-agent", "latest", ""),
        ("localhost:5000/team/my-agent:1.2.0", "localhost:5000/team/my-agent", "1.2.0", ""),
        ("r.example.com/a.b/c__d/x@sha256:" + "0" * 64, "r.example.com/a.b/c__d/x", "latest", "sha256:" + "0" * 64),
        ("[::1]:5000/x", "[::1]:5000/x", "latest", ""),
    ],
)
def test_image_reference(text: str, name: str, tag: str, digest: str) -> None:
    assert names.ImageReference.parse(text) == names.ImageReference(name, tag, digest)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1",
        "a:",
        "a:-x",
        "a:b:c",
        "A:1",
        "a@sha256:12",
        "a:1@sha256:" + "0" * 64,
        "/a",
        "a/",
        "a//b",
        "-r.com/a",
        "A/b",
        "localhost:port/a",
        "a__-b/c",
        "localhost:5000/a:",
        "a:" + "x" * 129,
    ],
)
def test_image_reference_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        names.ImageReference.parse(text)


@pytest.mark.parametrize(
    ("text", "registry", "repository", "agent"),
    [
        ("echo", "", "echo", "echo"),
        ("team/echo", "", "team/echo", "echo"),
        ("localhost/echo", "localhost", "echo", "echo"),
        ("localhost:5000/team/echo:1", "localhost:5000", "team/echo", "echo"),
        ("ghcr.io/a/b/echo", "ghcr.io", "a/b/echo", "echo"),
    ],
)
def test_where_a_reference_points(text: str, registry: str, repository: str, agent: str) -> None:
    reference = names.ImageReference.parse(text)
    assert (reference.registry, reference.repository, reference.agent) == (registry, repository, agent)


@given(st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True))
def test_a_reference_prints_as_it_was_written(text: str) -> None:
    assert str(names.ImageReference.parse(text)) == text


@pytest.mark.parametrize(
    ("image", "agent", "command"),
    [
        ("my-agent:1.1.0", "my-agent", "agent run my-agent:1.1.0"),
        ("my-agent:1.1.0", "second", "agent run my-agent:1.1.0 --name second"),
        ("localhost:5000/team/my-agent:1", "my-agent", "agent run localhost:5000/team/my-agent:1"),
        (f"my-agent@sha256:{'0' * 64}", "my-agent", f"agent run my-agent@sha256:{'0' * 64}"),
    ],
)
def test_the_command_that_runs_an_agent(image: str, agent: str, command: str) -> None:
    assert names.run_command(image, agent) == command
