"""The store of keys."""

import contextlib
from pathlib import Path

from agentruntime._proto.uapi.v1 import access_pb2 as proto

from uapi_gateway.access import keys
from uapi_gateway.access.certified import Certified
from uapi_gateway.access.keys import Wanted
from uapi_gateway.access.store import KeyStore


async def test_keys_are_there_after_a_restart_and_nobody_else_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "access.db"
    secret, one = keys.mint(Wanted("one", proto.ROLE_OPERATE, ("a", "b"), 60.0, 1.5, 3), 1000.0)
    _, two = keys.mint(Wanted("two", proto.ROLE_CALL, ("*",)), 1000.0)
    with contextlib.closing(KeyStore(path)) as store:
        await store.save(two)
        await store.save(one)
    assert path.stat().st_mode & 0o777 == 0o600
    with contextlib.closing(KeyStore(path)) as store:
        assert store.load() == [one, two]
        await store.remove(one.key_id)
        # In the place of one that has expired.
        _, again = keys.mint(Wanted("two", proto.ROLE_CALL, ("a",)), 2000.0)
        await store.save(again)
        assert store.load() == [again]
    signature = secret.rpartition(".")[2].encode()
    assert not any(signature in file.read_bytes() for file in tmp_path.iterdir())


async def test_what_is_said_of_certificates_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "access.db"
    nothing = Certified("*", proto.ROLE_UNSPECIFIED, (), 1000.0)
    before, now = (Certified("spiffe://x/ci", proto.ROLE_OPERATE, agents, 1.5) for agents in (("a",), ("b", "c")))
    with contextlib.closing(KeyStore(path)) as store:
        for said in (before, nothing, now):
            await store.save_certified(said)
    with contextlib.closing(KeyStore(path)) as store:
        assert store.load_certified() == [nothing, now]
        await store.remove_certified("*")
        assert store.load_certified() == [now]
