"""`agent keys`, `agent whoami`, and the keys that other commands take."""

import base64
import json

import pytest
from agentruntime._proto.uapi.v1 import access_pb2, agent_pool_pb2, secret_service_pb2
from agentruntime.api_keys import key_id_of
from agentruntime.cli import dev

from tests.agentruntime.cli.conftest import Agent
from tests.agentruntime.platform_services import Record

_CLAIMS = base64.urlsafe_b64encode(json.dumps({"jti": "0a1b2c"}).encode()).decode().rstrip("=")
_KEY = f"uapi_eyJhbGciOiJFZERTQSJ9.{_CLAIMS}.signature"


def test_a_key_is_shown_alone(agent: Agent, record: Record) -> None:
    result = agent("keys", "create", "--name", "ci", "--agents", "a, b", "--expires", "30d", "--rate", "600/m")
    (request,) = record.requests
    assert (request.name, request.role, list(request.agents)) == ("ci", access_pb2.ROLE_CALL, ["a", "b"])
    assert (request.expires_in.seconds, request.rate_per_second) == (30 * 24 * 3600, 10.0)
    # What is piped on is the key, and nothing else.
    assert result.out == "uapi_shown-once\n"
    assert "not shown again" in result.err
    data = json.loads(agent("keys", "create", "--name", "x", "--agents", "*", "--role", "operate", "-o", "json").out)
    assert (data["secret"], data["name"]) == ("uapi_shown-once", "x")
    assert record.requests[-1].role == access_pb2.ROLE_OPERATE
    assert not record.requests[-1].HasField("expires_in")


def test_how_long_a_key_lasts_needs_a_unit(agent: Agent, record: Record) -> None:
    result = agent("keys", "create", "--name", "ci", "--agents", "a", "--expires", "30")
    assert (result.status, result.out) == (13, "")
    assert "write 30d" in result.err
    assert record.requests == []


def test_keys_are_listed_and_revoked(agent: Agent, record: Record) -> None:
    listed = agent("keys", "list").out
    assert [word in listed for word in ("ci", "0a1b", "call", "a,b", "2.5/s, 4 in flight")] == [True] * 5
    assert agent("keys", "revoke", "ci").out == "revoked ci (0a1b)\n"
    assert record.requests == [access_pb2.RevokeKeyRequest(key="ci")]


def test_who_one_is(agent: Agent, record: Record) -> None:
    assert agent("whoami", "--api-key", "uapi_x").out == "key:ci\n  call: a\n  operate: all agents\n"
    assert ("authorization", "Bearer uapi_x") in record.metadata.items()


@pytest.mark.parametrize(
    "command",
    [
        ("run", "my-agent:1.2.0"),
        ("run", "my-agent:1.2.0", "--update"),
        ("update", "my-agent"),
        ("update", "my-agent-01"),
    ],
)
def test_of_a_key_that_an_agent_demands_only_the_id_is_a_setting(
    agent: Agent, record: Record, command: tuple[str, ...]
) -> None:
    assert agent(*command, "--api-key", _KEY, "--api-key", "ci").status == 0
    secret, *_ = [each for each in record.requests if isinstance(each, secret_service_pb2.SetSecretRequest)]
    assert (secret.name, secret.value) == ("my-agent/uapi-api-key", _KEY.encode())
    wanted = [
        each
        for each in record.requests
        if isinstance(each, (agent_pool_pb2.RunAgentRequest, agent_pool_pb2.UpdateAgentRequest))
    ]
    assert {tuple(each.settings.access.keys) for each in wanted} == {("0a1b2c", "ci")}
    assert all(b"signature" not in each.SerializeToString() for each in wanted)


def test_who_develops_an_agent_hands_its_key_over_too(
    agent: Agent, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    developed: list[dev.Development] = []
    monkeypatch.setattr(dev, "develop", lambda _client, development: developed.append(development))
    assert agent("run", "my-agent:1.2.0", "--dev", "--api-key", _KEY).status == 0
    (secret,) = [each for each in record.requests if isinstance(each, secret_service_pb2.SetSecretRequest)]
    assert (secret.name, secret.value) == ("my-agent/uapi-api-key", _KEY.encode())
    assert [list(each.request.settings.access.keys) for each in developed] == [["0a1b2c"]]


def test_a_key_that_was_cut_off_is_refused_without_being_repeated(agent: Agent) -> None:
    result = agent("run", "my-agent", "--api-key", _KEY[:40])
    assert result.status != 0
    assert "begins as an API key" in result.err
    assert _KEY[30:40] not in result.err


def test_ids() -> None:
    assert key_id_of(_KEY) == "0a1b2c"
    assert key_id_of("ci") == key_id_of("uapi_x.y.z") == key_id_of("uapi_eyJ.W10.x") == ""
