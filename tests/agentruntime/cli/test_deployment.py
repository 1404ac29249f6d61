"""What a command says of a deployment."""

from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_pb2
from agentruntime.cli.deployment import permitted


def test_what_an_agent_may_use_is_a_line() -> None:
    assert permitted(pool_pb2.Deployment(agent="a")) == ""
    deployment = pool_pb2.Deployment(
        permissions=pool_pb2.Permissions(agents=["b", "c"], egress=["api.example.com:443"])
    )
    assert permitted(deployment) == "It may use: agents b, c; egress api.example.com:443"
