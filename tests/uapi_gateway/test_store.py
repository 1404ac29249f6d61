"""What survives a restart of the gateway."""

from pathlib import Path

from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool

from uapi_gateway.registry import Agent, Endpoint, Registry
from uapi_gateway.store import Store


async def test_everything_saved_is_loaded_again(tmp_path: Path) -> None:
    entered = Registry().register(
        Agent("x", ("s.S",), (Endpoint("localhost:1", ready=False, reason="no", resolved="127.0.0.1:1"),),
              capabilities=("c",), descriptors=b"\x01\x00", health_check="http://h:1/"),
        30, 1000.0,
    )  # fmt: skip
    store = Store(tmp_path / "g.db")
    assert store.load() == ([], [])
    deployment = pool.Deployment(agent="a", replicas=3, descriptors=b"\xff")
    await store.save_deployment(pool.Deployment(agent="a"))
    await store.save_deployment(deployment)
    await store.save_deployment(pool.Deployment(agent="b"))
    await store.remove_deployment("b")
    await store.save_registered(entered)
    await store.save_registered(Registry().register(Agent("y", (), ()), 30, 1.0))
    await store.remove_registered("y")
    store.close()
    again = Store(tmp_path / "g.db")
    assert again.load() == ([deployment], [entered])
    again.close()
