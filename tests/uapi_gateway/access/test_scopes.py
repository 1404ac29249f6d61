import pytest

from uapi_gateway.access.scopes import Grant, Role, grants, parse, sufficient


@pytest.mark.parametrize(
    ("scope", "grant"),
    [
        ("uapi.call", Grant(Role.CALL, "*")),
        ("uapi.call:my-agent", Grant(Role.CALL, "my-agent")),
        ("uapi.operate", Grant(Role.OPERATE, "*")),
        ("uapi.operate:a", Grant(Role.OPERATE, "a")),
        ("uapi.administer", Grant(Role.ADMINISTER, "*")),
        # To administer is always for all agents.
        ("uapi.administer:a", None),
        ("uapi.call:", None),
        ("uapi.call:*", None),
        ("uapi.call:My-Agent", None),
        ("uapi.call:-a", None),
        (f"uapi.call:{'a' * 64}", None),
        ("uapi.call:a b", None),
        ("uapi.call ", None),
        ("uapi.call\n", None),
        ("UAPI.CALL", None),
        ("xuapi.call", None),
        ("openid", None),
        ("", None),
    ],
)
def test_a_scope(scope: str, grant: Grant | None) -> None:
    assert parse(scope) == grant
    if grant:
        assert grant.scope == scope


@pytest.mark.parametrize(
    ("values", "mapped", "expected"),
    [
        ([], {}, set()),
        (["openid", "uapi.call:a", "uapi.operate"], {}, {Grant(Role.CALL, "a"), Grant(Role.OPERATE, "*")}),
        (["Agents.Use"], {"Agents.Use": ["uapi.call"]}, {Grant(Role.CALL, "*")}),
        (["team"], {"team": ["uapi.call:a", "uapi.operate:b"]}, {Grant(Role.CALL, "a"), Grant(Role.OPERATE, "b")}),
        # With a mapping, only that counts.
        (["uapi.administer"], {"Agents.Use": ["uapi.call"]}, set()),
    ],
)
def test_what_a_token_may_do(values: list[str], mapped: dict[str, list[str]], expected: set[Grant]) -> None:
    assert grants(values, mapped) == expected


MAPPED = {"everyone": ["uapi.call"], "team-a": ["uapi.call:a", "uapi.operate:b"], "boss": ["uapi.administer"]}


@pytest.mark.parametrize(
    ("role", "agent", "mapped", "expected"),
    [
        (
            Role.CALL,
            "a",
            {},
            ("uapi.call", "uapi.call:a", "uapi.operate", "uapi.operate:a", "uapi.administer"),
        ),
        (Role.OPERATE, "a", {}, ("uapi.operate", "uapi.operate:a", "uapi.administer")),
        (Role.OPERATE, "*", {}, ("uapi.operate", "uapi.administer")),
        (Role.ADMINISTER, "*", {}, ("uapi.administer",)),
        (Role.CALL, "a", MAPPED, ("everyone", "team-a", "boss")),
        (Role.CALL, "c", MAPPED, ("everyone", "boss")),
        (Role.OPERATE, "b", MAPPED, ("team-a", "boss")),
        (Role.OPERATE, "a", MAPPED, ("boss",)),
        (Role.ADMINISTER, "*", {"everyone": ["uapi.call"]}, ()),
    ],
)
def test_which_scopes_suffice(
    role: Role, agent: str, mapped: dict[str, list[str]], expected: tuple[str, ...]
) -> None:
    assert sufficient(role, agent, mapped) == expected
    # The two directions agree.
    for value in expected:
        held = grants([value], mapped)
        assert any(grant.role >= role and grant.agent in (agent, "*") for grant in held)
