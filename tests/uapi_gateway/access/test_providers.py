import pytest
from agentruntime.errors import InvalidArgument

from uapi_gateway.access.providers import identity, read

GOOD = """
providers:
  - name: corp
    issuer: https://login.example.com
    audiences: agentruntime
    scope_claims: [groups]
    grants:
      everyone: uapi.call
      team-a: [uapi.call:a, uapi.operate:b]
    login: {client_id: agent-cli, scopes: [openid]}
"""


def test_a_file() -> None:
    (provider,) = read(GOOD.encode(), "f")
    assert provider.audiences == ("agentruntime",)
    assert provider.subject_claim == "sub"
    assert provider.grants == {"everyone": ["uapi.call"], "team-a": ["uapi.call:a", "uapi.operate:b"]}
    assert read(b"", "f") == ()
    # Keys that were kept are those of this issuer only.
    (other,) = read(GOOD.replace("login.example", "log1n.example").encode(), "f")
    assert identity(other) != identity(provider)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("https://login", "http://login", "providers[0].issuer: 'http://login.example.com' is not https"),
        ("https://login", "ftp://login", "providers[0].issuer: 'ftp://login.example.com' is not"),
        ("audiences: agentruntime", "audiences: []", "providers[0].audiences: tuple should have at least 1 item"),
        ("    audiences: agentruntime\n", "", "providers[0].audiences: field required"),
        ("name: corp", "name: Corp", "providers[0].name: string should match"),
        ("name: corp", "name: corp\n    isuer: x", "providers[0].isuer is not a setting"),
        ("everyone: uapi.call", "everyone: uapi.everything", "providers[0].grants.everyone[0]: 'uapi.everything' is"),
        ("[groups]", "[realm_access:roles]", "providers[0].scope_claims[0]: string should match"),
        ("[groups]", "[]", "providers[0].scope_claims: tuple should have at least 1 item"),
        ("providers:", "provider:", "provider is not a setting"),
        ("providers:", "- a", "is not YAML"),
        (GOOD, "[1]", "input should be a valid dictionary"),
        (GOOD, "a: &a [*a]", "is not a setting"),
        (GOOD, "\x00", "is not YAML"),
        (GOOD, "#" * 2**18 + "#", "larger than 256 KiB"),
    ],
)
def test_what_is_wrong_is_named(before: str, after: str, said: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        read(GOOD.replace(before, after).encode(), "identity-providers.yaml")
    assert said in raised.value.message.replace("Input", "input")
    assert raised.value.message.startswith("identity-providers.yaml")


def test_names_and_issuers_are_distinct() -> None:
    twice = GOOD + GOOD.replace("providers:\n", "").replace("login.example", "other.example")
    with pytest.raises(InvalidArgument, match="the name 'corp' stands twice"):
        read(twice.encode(), "f")
    twice = GOOD + GOOD.replace("providers:\n", "").replace("name: corp", "name: second")
    with pytest.raises(InvalidArgument, match=r"the issuer .* stands twice"):
        read(twice.encode(), "f")
