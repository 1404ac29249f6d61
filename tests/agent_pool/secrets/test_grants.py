"""Who gets which secret."""

import pytest
from agentruntime import errors, sealed

from agent_pool.secrets import grants
from agent_pool.secrets.grants import Secret


def kept(*secrets: Secret) -> dict[str, Secret]:
    return {each.name: each for each in secrets}


def secret(name: str, *agents: str, version: str = "1", value: bytes | None = b"v") -> Secret:
    return Secret(name, agents, version, 0.0, value)


SET = kept(
    secret("openai", "a", "b"),
    secret("c/openai", "c", version="c1"),
    secret("b/openai", "b", version="b1"),
    secret("all", "*"),
    secret("lost", "a", value=None),
)


@pytest.mark.parametrize(
    ("agent", "wanted", "names"),
    [
        ("a", (), {}),
        ("a", ("openai",), {"openai": "openai"}),
        ("b", ("openai", "all"), {"openai": "b/openai", "all": "all"}),
        ("c", ("*",), {"all": "all", "openai": "c/openai"}),
        ("d", ("*",), {"all": "all"}),
    ],
)
def test_an_agent_gets_what_it_names_and_was_given(
    agent: str, wanted: tuple[str, ...], names: dict[str, str]
) -> None:
    assert {file: each.name for file, each in grants.granted(SET, agent, wanted).items()} == names


@pytest.mark.parametrize(
    ("agent", "name", "says"),
    [
        ("a", "stripe", "is not set; set it with `agent secrets set stripe --agents a`"),
        ("d", "openai", "`agent secrets set openai --keep-value --agents a,b,d`"),
        ("a", "lost", "another key"),
    ],
)
def test_what_is_missing_is_said_with_what_sets_it(agent: str, name: str, says: str) -> None:
    with pytest.raises(errors.SecretNotSet, match="needs the secret") as refused:
        grants.granted(SET, agent, (name,))
    assert says in refused.value.message


def test_too_much_at_once() -> None:
    large = kept(*(secret(f"s{number}", "a", value=bytes(sealed.MOST_BYTES // 2)) for number in range(3)))
    with pytest.raises(errors.FailedPrecondition, match="give it fewer"):
        grants.granted(large, "a", ("*",))


def test_values_are_in_no_text() -> None:
    assert "hidden" not in repr(secret("x", "a", value=b"hidden"))


def test_outdated() -> None:
    workers: list[tuple[str, grants.Versions, list[grants.Versions]]] = [
        ("has-it", {"k": "2"}, [{"k": "2"}]),
        ("older", {"k": "2"}, [{"k": "2"}, {"k": "1"}]),
        ("lacks-it", {"k": "2"}, [{}]),
        ("not-its", {}, [{"k": "2"}]),
        ("never", {}, [{}]),
    ]
    assert grants.outdated("k", workers) == ["lacks-it", "not-its", "older"]
