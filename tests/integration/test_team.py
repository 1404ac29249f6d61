"""examples/team: one agent calls another, and what agent.yaml does not permit is refused and audited."""

from collections.abc import Iterator

import pytest

from tests.integration.conftest import ROOT, Platform

# The first to use the platform also waits for it.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture
def team(platform: Platform) -> Iterator[Platform]:
    for name in ("writer", "critic"):
        platform.agent("build", str(ROOT / "examples" / "team" / name))
    try:
        ran = platform.agent("run", "writer:1.0.0", "--native")
        assert "It may use: agents critic" in ran.stdout
        assert "It may use" not in platform.agent("run", "critic:1.0.0", "--native").stdout
        yield platform
    finally:
        for name in ("writer", "critic"):
            platform.agent("stop", name)


def test_the_team_works(team: Platform) -> None:
    said = team.agent("call", "writer", "hello").stdout
    assert said.strip() == "hello, said the writer. The critic counts 4 words."
    # Asleep, it is woken by the writer's call.
    team.agent("scale", "critic", "--replicas", "0")
    assert "The critic counts" in team.agent("call", "writer", "again").stdout
    refused = team.agent("call", "critic", "what may you use?").stdout
    assert "`permissions: {agents: [writer]}`" in refused
    (line,) = team.agent("audit", "--principal", "agent:critic").stdout.splitlines()
    assert "denied  agent:critic" in line
    assert line.endswith("call writer: permissions: {agents: [writer]}")
    # This user's own changes stand there, too, whatever way they take.
    assert " allowed local  AgentPool/ScaleAgent critic" in team.agent("audit", "--principal", "local").stdout
    assert "none changed or missing" in team.agent("audit", "verify").stdout
