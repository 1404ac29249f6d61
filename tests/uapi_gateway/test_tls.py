"""The gateway's certificates: what is taken up, what is refused, what is said."""

import asyncio
from pathlib import Path

import pytest
from agentruntime.certificates import Files
from agentruntime.errors import FailedPrecondition

from tests.certificates import Made, authority, issued, self_signed
from tests.waiting import eventually
from uapi_gateway.outward import Outward
from uapi_gateway.tls import Certificates, Sources
from uapi_gateway.xds import resources, transport
from uapi_gateway.xds.cache import Cache


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return self_signed(tmp_path, "one", "DNS:one.example")


def version(cache: Cache, name: str = transport.SERVER) -> str:
    secret = cache.get(resources.SECRET, name)
    return secret.version if secret else ""


def held(cache: Cache, **sources: object) -> Certificates:
    return Certificates(Sources(**sources), cache)  # type: ignore[arg-type]  # fields of it


def test_a_new_certificate_is_taken_up_once_it_is_whole(tmp_path: Path, made: Made) -> None:
    cache = Cache()
    certificates = held(cache, server=Files(made.cert, made.key))
    certificates.load()
    first = version(cache)
    certificates.reload()
    assert version(cache) == first
    other = self_signed(tmp_path, "two", "DNS:two.example")
    made.cert.write_bytes(other.cert.read_bytes())
    certificates.reload()
    assert version(cache) == first
    made.key.write_bytes(other.key.read_bytes())
    certificates.reload()
    assert version(cache) not in ("", first)


def test_one_that_has_ended_does_not_take_the_place_of_one_that_has_not(tmp_path: Path, made: Made) -> None:
    cache = Cache()
    certificates = held(cache, server=Files(made.cert, made.key))
    certificates.load()
    before = version(cache)
    ended = issued(tmp_path, authority(tmp_path), "ended", "DNS:one.example", expired=True)
    for mine, theirs in ((made.cert, ended.cert), (made.key, ended.key)):
        mine.write_bytes(theirs.read_bytes())
    certificates.reload()
    assert version(cache) == before
    # At the start it is better than none: this user's socket must open.
    afresh = held(Cache(), server=Files(made.cert, made.key))
    afresh.load()
    assert afresh.server is not None


def test_what_was_asked_for_must_be_there_and_what_was_found_need_not(tmp_path: Path, made: Made) -> None:
    nowhere = Files(tmp_path / "none.pem", tmp_path / "none.key")
    with pytest.raises(FailedPrecondition, match="cannot be read"):
        held(Cache(), server=nowhere, found=True).load()
    with pytest.raises(FailedPrecondition, match="cannot be read"):
        held(Cache(), own=nowhere).load()
    found = held(Cache(), own=nowhere, authority=made.key, found=True)
    found.load()
    with pytest.raises(FailedPrecondition, match="no authority by which to verify an https endpoint"):
        Outward(found).check()
    assert not Outward(found).shows_own


async def test_changes_are_seen_where_a_link_leads_too(tmp_path: Path, made: Made) -> None:
    link, cache = tmp_path / "live.pem", Cache()
    link.symlink_to(made.cert)
    certificates = held(cache, server=Files(link, made.key))
    certificates.load()
    first = version(cache)
    watching = asyncio.create_task(certificates.watch())
    try:
        other = self_signed(tmp_path, "two", "DNS:two.example")
        other.cert.replace(made.cert)
        other.key.replace(made.key)
        await eventually(lambda: version(cache) != first)
    finally:
        watching.cancel()
        await asyncio.wait([watching])
