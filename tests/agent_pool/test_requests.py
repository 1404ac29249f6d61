"""Requests as they are read, and settings as they are told: what is told can be asked for again."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from agentruntime import errors
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb
from google.protobuf.duration_pb2 import Duration

from agent_pool import messages, requests
from agent_pool.asked import Asked, AskedHandling, AskedPolicies
from agent_pool.policies import Policies
from tests.agent_pool.test_state import deployment


def run(**settings: object) -> pb.RunAgentRequest:
    return pb.RunAgentRequest(image="a", settings=pb.AgentSettings(**settings))  # type: ignore[arg-type]  # fields


def test_what_is_silent_asks_for_nothing() -> None:
    read = requests.run_request(pb.RunAgentRequest(image="a"))
    assert (read.asked, read.policies, read.replicas) == (Asked(), AskedPolicies(), None)
    assert requests.run_request(pb.RunAgentRequest(image="a", replicas=0)).replicas == 0
    assert requests.grace_s(pb.StopAgentRequest()) == 30.0
    assert requests.grace_s(pb.UpdateAgentRequest(grace_period=Duration(nanos=500_000_000))) == 0.5


def test_everything_in_force_is_told_and_can_be_asked_for() -> None:
    told = messages.settings(deployment())
    for field in pb.AgentSettings.DESCRIPTOR.fields_by_name:
        if field not in {"venv"}:
            assert any(each.name == field for each, _ in told.ListFields()), field
    assert (told.health_check.retries, told.restart_policy) == (7, pb.RESTART_POLICY_NO)
    assert (told.scaling.min_replicas, told.scaling.max_replicas, told.scaling.idle_timeout.seconds) == (1, 10, 300)
    assert told.traffic.load_balancer == pb.LOAD_BALANCER_LEAST_REQUEST
    assert (told.serving.concurrency, told.serving.queue, told.serving.compression) == (64, 1024, pb.COMPRESSION_NONE)
    made = deployment()
    assert made.take_up(requests.asked_policies(told)) is False
    assert requests.asked(told).serving.queue == 1024
    assert requests.asked(told).handling == AskedHandling("queue", "retry", 60.0)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (pb.RunAgentRequest(), "name an image"),
        (pb.RunAgentRequest(image="a", replicas=1001), "1001 replicas"),
        (run(network=9), "9 is not a network mode"),
        (run(restart_policy=9), "9 is not a restart policy"),
        (run(log_level="loud"), "not a log level"),
        (run(env={"": "x"}), "environment variable"),
        (run(env={"A": "x" * 200_000}), "larger"),
        (run(serving=pb.Serving(concurrency=0)), "a concurrency of 0"),
        (run(serving=pb.Serving(queue=10**6)), "a queue of 1000000"),
        (run(serving=pb.Serving(compression=9)), "9 is not a compression"),  # type: ignore[arg-type]  # wrong on purpose
        (run(health_check=pb.HealthCheck(interval_seconds=math.nan)), "interval of nan"),
        (run(health_check=pb.HealthCheck(timeout_seconds=0)), "timeout of 0"),
        (run(health_check=pb.HealthCheck(failure_action=9)), "9 is not a failure action"),  # type: ignore[arg-type]  # as above
        (run(traffic=pb.Traffic(load_balancer=9)), "9 is not a load balancer"),  # type: ignore[arg-type]  # as above
        (run(traffic=pb.Traffic(failure_threshold=10**6)), "a failure threshold of 1000000"),
        (run(cache=pb.Cache(ttl=Duration(seconds=-1))), "keeps none"),
        (run(logging=pb.Logging(aggregator="fluentd://host:0")), "not where logs can be sent"),
        (run(logging=pb.Logging(aggregator="fluentd://host:65536")), "not where logs can be sent"),
        (run(logging=pb.Logging(max_bytes=99_999)), "less than 100000"),
        (run(conversations=pb.Conversations(when_busy=9)), "9 is not a way"),  # type: ignore[arg-type]  # as above
        (run(conversations=pb.Conversations(ttl=Duration(seconds=60))), "ttl in seconds of 60 is less than 3600"),
        (run(conversations=pb.Conversations(max_events=1)), "max_events of 1 is less than 10"),
        (run(conversations=pb.Conversations(max_bytes=1)), "max_bytes of 1 is less than 10000"),
        (run(conversations=pb.Conversations(idle=Duration())), "idle after 0s"),
        (run(permissions=pb.Permissions(egress=["example.com"])), "not host:port"),
        (run(permissions=pb.Permissions(egress=["none", "a:1"])), "permissions: 'none' stands for no longer any"),
        (run(access=pb.Access(keys=["ci", "none"])), "access: 'none' stands for no longer any"),
        (run(permissions=pb.Permissions(secrets=["my/openai"])), "name it without the agent: openai"),
        (run(permissions=pb.Permissions(secrets=[".openai"])), "not the name of a secret"),
    ],
)
def test_what_makes_no_sense(request_: pb.RunAgentRequest, says: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=says):
        requests.run_request(request_)


@pytest.mark.parametrize("seconds", [-1, 3601])
@pytest.mark.parametrize("kind", [pb.StopAgentRequest, pb.RestartAgentRequest, pb.RollbackAgentRequest])
def test_grace_periods_have_bounds(kind: Callable[..., pb.StopAgentRequest], seconds: int) -> None:
    with pytest.raises(errors.InvalidArgument, match="grace period"):
        requests.grace_s(kind(grace_period=Duration(seconds=seconds)))


def test_secrets_by_the_names_of_their_files_or_all() -> None:
    read = requests.run_request(run(permissions=pb.Permissions(secrets=["openai", "*"])))
    assert read.asked.permissions.secrets == ("openai", "*")


@pytest.mark.parametrize(
    ("before", "after", "egress", "keys", "client"),
    [
        ({}, {}, [], [], ""),
        ({"egress": ["a:1"], "keys": ["ci"], "client": "chat"}, {}, ["a:1"], ["ci"], "chat"),
        ({"egress": ["a:1"], "keys": ["ci"], "client": "chat"}, {"egress": ["none"]}, [], ["ci"], "chat"),
        ({"egress": ["a:1"], "keys": ["ci"], "client": "chat"}, {"keys": ["none"]}, ["a:1"], [], "chat"),
        ({"egress": ["a:1"], "keys": ["ci"], "client": "chat"}, {"client": "none"}, ["a:1"], ["ci"], ""),
        ({"egress": ["none"], "keys": ["none"], "client": "none"}, {}, [], [], ""),
        ({"egress": ["none"], "keys": ["none"]}, {"egress": ["b:2"], "keys": ["x"]}, ["b:2"], ["x"], ""),
    ],
)
def test_what_an_operator_granted_or_demanded_can_be_taken_back(
    before: dict[str, Any], after: dict[str, Any], egress: list[str], keys: list[str], client: str
) -> None:
    def read(said: dict[str, Any]) -> tuple[Asked, AskedPolicies]:
        given = pb.AgentSettings(
            permissions=pb.Permissions(egress=said.get("egress", [])),
            access=pb.Access(keys=said.get("keys", []), oauth2_client_id=said.get("client")),
        )
        return requests.asked(given), requests.asked_policies(given)

    (asked, policies), (later, laters) = read(before), read(after)
    made = deployment()
    made.asked = laters.over(policies)
    made.policies = Policies.of(made.asked, 64)
    in_force = later.over(asked)
    made.revisions[made.current] = made.spec.model_copy(update={"asked": in_force})
    told = messages.settings(made)
    assert (list(told.permissions.egress), list(told.access.keys), told.access.oauth2_client_id) == (
        egress,
        keys,
        client,
    )
    assert list(messages.deployment(made).permissions.egress) == egress
    assert later.differs_from(in_force) == []
