"""What a secret may be set for; the rest of SecretService is met in the conformance suite."""

import pytest
from agentruntime import errors

from agent_pool.secret_service import checked_agents


@pytest.mark.parametrize(
    ("name", "agents", "found"),
    [
        ("k", [], []),
        ("k", ["a", "b", "a"], ["a", "b"]),
        ("k", ["*"], ["*"]),
        ("a/k", [], ["a"]),
        ("a/k", ["a"], ["a"]),
    ],
)
def test_agents(name: str, agents: list[str], found: list[str]) -> None:
    assert checked_agents(name, agents) == found


@pytest.mark.parametrize(
    ("name", "agents"),
    [("k", ["Not_One"]), ("k", ["*", "a"]), ("a/k", ["b"]), ("a/k", ["*"]), ("..", ["a"]), ("", [])],
)
def test_what_is_refused(name: str, agents: list[str]) -> None:
    with pytest.raises(errors.InvalidArgument):
        checked_agents(name, agents)
