"""Keys: what they look like, who can make one, and what is kept."""

import json
from typing import Any

import pytest
from agentruntime import errors
from agentruntime._proto.uapi.v1 import access_pb2 as proto
from agentruntime.api_keys import key_id_of

from uapi_gateway.access import keys
from uapi_gateway.access.keys import Wanted

NOW = 1_800_000_000.0


def wanted(**changes: Any) -> Wanted:
    return Wanted(**{"name": "ci", "role": proto.ROLE_CALL, "agents": ("a",), **changes})


def test_what_is_kept_knows_the_key_and_holds_nothing_of_it() -> None:
    secret, key = keys.mint(wanted(expires_in_s=60.0), NOW)
    assert secret.startswith(keys.KEY_MARK)
    assert key_id_of(secret) == key.key_id
    assert (key.principal, key.expires_at) == ("key:ci", NOW + 60)
    assert keys.belongs(secret, [key])
    parts = secret.removeprefix("uapi_").split(".")
    claims = json.loads(keys._bytes(parts[1]))
    assert claims == {"iss": "uapi", "sub": "key:ci", "jti": key.key_id, "iat": int(NOW), "exp": int(NOW) + 60}
    # Neither its signature nor a private half.
    assert parts[2] not in repr(key)
    assert key.live(NOW + 59)
    assert not key.live(NOW + 60)


@pytest.mark.parametrize("made", ["", "uapi_", "uapi_a.b.c", "Bearer x", "uapi_eyJ.e30.x", "uapi_eyJ.W10.x"])
def test_what_is_no_key_belongs_to_none(made: str) -> None:
    _, key = keys.mint(wanted(), NOW)
    assert key_id_of(made) == ""
    assert not keys.belongs(made, [key])


def test_another_s_signature_does_not_do() -> None:
    secret, key = keys.mint(wanted(), NOW)
    other, other_key = keys.mint(wanted(), NOW)
    signed, _, _ = secret.rpartition(".")
    _, _, signature = other.rpartition(".")
    assert not keys.belongs(f"{signed}.{signature}", [key, other_key])
    assert not keys.belongs(secret, [other_key])


def test_the_key_set_is_json_and_never_empty() -> None:
    made = [keys.mint(wanted(name=name), NOW)[1] for name in ("x", "y")]
    members = json.loads(keys.key_set(made))["keys"]
    assert [(each["kid"], each["x"]) for each in members] == [(key.key_id, key.public) for key in made]
    assert len(json.loads(keys.key_set([]))["keys"]) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "Not-A-Label"}, "not a key's name"),
        ({"name": "x" * 64}, "not a key's name"),
        ({"name": "none"}, "no key is demanded"),
        ({"role": 17}, "role"),
        ({"agents": ()}, "which agents"),
        ({"agents": ("*", "a")}, "alone"),
        ({"agents": ("a b",)}, "not an agent name"),
        ({"role": proto.ROLE_ADMINISTER}, "for all agents"),
        ({"expires_in_s": 0.0}, "later than now"),
        ({"expires_in_s": -5.0}, "later than now"),
        ({"expires_in_s": 3e11}, "100 years"),
        ({"expires_in_s": float("inf")}, "100 years"),
        ({"rate_per_second": -1.0}, "rate"),
        ({"rate_per_second": float("nan")}, "rate"),
    ],
)
def test_keys_that_cannot_be_made(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=said):
        keys.check(wanted(**changes))


def test_what_callers_see_of_a_key() -> None:
    _, key = keys.mint(wanted(rate_per_second=2.5, max_concurrency=4, expires_in_s=1.0), NOW)
    message = key.message()
    assert (message.key_id, message.name, message.role) == (key.key_id, "ci", proto.ROLE_CALL)
    assert (message.rate_per_second, message.max_concurrency, list(message.agents)) == (2.5, 4, ["a"])
    assert message.expires_at.seconds == int(NOW) + 1
    assert not keys.mint(wanted(), NOW)[1].message().HasField("expires_at")
