"""Against the real provider."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import yaml
from agentruntime.errors import InvalidArgument, Unavailable

from tests.identity_provider import AUDIENCE, IdentityProvider, SigningKey, identity_provider
from tests.waiting import eventually
from uapi_gateway.access.identity import IdentityProviders, Known, fetch, next_fetch_s
from uapi_gateway.access.jwks import KeySet
from uapi_gateway.access.providers import Provider

CORP = Provider(name="corp", issuer="https://a", audiences=("a",))


@pytest.mark.parametrize(
    ("failures", "known", "expected_s"),
    [(0, False, 60), (1, False, 1), (4, False, 8), (99, False, 60), (5, True, 60)],
)
def test_when_a_provider_is_asked_again(failures: int, known: bool, expected_s: float) -> None:
    assert next_fetch_s(Known(CORP, KeySet() if known else None, failures=failures), 60) == expected_s


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    with identity_provider() as running:
        yield running


@contextlib.asynccontextmanager
async def following(directory: Path, *, required: bool = False) -> AsyncIterator[IdentityProviders]:
    """What a gateway has, with its file and its kept keys in a directory."""
    followed = IdentityProviders(
        directory / "identity-providers.yaml", required=required, cache=directory / "jwks", interval_s=0.1
    )
    followed.load()
    task = asyncio.create_task(followed.run())
    try:
        yield followed
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def write(directory: Path, *providers: dict[str, object]) -> None:
    scratch = directory / "scratch"
    scratch.write_text(yaml.safe_dump({"providers": list(providers)}))
    scratch.replace(directory / "identity-providers.yaml")


def kids(followed: IdentityProviders) -> list[list[str]]:
    return [[key["kid"] for key in known.keys.keys] if known.keys else [] for known in followed.all()]


@pytest.mark.integration
async def test_keys_follow_the_file_and_the_provider(provider: IdentityProvider, tmp_path: Path) -> None:
    corp: dict[str, object] = {"name": "corp", "issuer": provider.issuer, "audiences": [AUDIENCE]}
    async with following(tmp_path) as followed:
        changes: list[int] = []
        followed.listeners.append(lambda: changes.append(1))
        assert followed.all() == []
        write(tmp_path, corp)
        await eventually(lambda: kids(followed) == [["one"]])
        # A mistake leaves those of before in force, and is told.
        write(tmp_path, corp | {"audiences": []})
        await eventually(lambda: "providers[0].audiences" in followed.file_error)
        assert kids(followed) == [["one"]]
        write(tmp_path, corp | {"audiences": ["other"]})
        await eventually(lambda: followed.file_error == "" and followed.all()[0].provider.audiences == ("other",))
        # Its keys stay: they are the same provider's.
        assert kids(followed) == [["one"]]
        provider.publish(SigningKey("two"), *provider.keys)
        await eventually(lambda: kids(followed) == [["two", "one"]])
        seen = len(changes)
        provider.stop()
        await eventually(lambda: "does not answer" in followed.all()[0].error)
        assert kids(followed) == [["two", "one"]]
        assert len(changes) == seen
    # Another gateway, while the provider is still away.
    async with following(tmp_path) as followed:
        assert kids(followed) == [["two", "one"]]
        await eventually(lambda: followed.all()[0].failures)
        assert kids(followed) == [["two", "one"]]
        # Another issuer under the same name has not these keys.
        write(tmp_path, corp | {"issuer": "http://127.0.0.1:1"})
        await eventually(lambda: kids(followed) == [[]])
        write(tmp_path, corp)
        await eventually(lambda: followed.all()[0].provider.issuer == provider.issuer)
        provider.start()
        await eventually(lambda: kids(followed) == [["two", "one"]])
        write(tmp_path)
        await eventually(lambda: followed.all() == [])
        assert not list((tmp_path / "jwks").iterdir())


@pytest.mark.integration
def test_what_is_fetched(provider: IdentityProvider) -> None:
    corp = CORP.model_copy(update={"issuer": provider.issuer})
    assert fetch(corp).keys
    # Without discovery.
    assert fetch(CORP.model_copy(update={"jwks_uri": f"{provider.issuer}/jwks"})) == fetch(corp)
    with pytest.raises(Unavailable, match="HTTP 404"):
        fetch(CORP.model_copy(update={"jwks_uri": f"{provider.issuer}/nothing"}))
    with pytest.raises(Unavailable, match="no list of keys"):
        fetch(CORP.model_copy(update={"jwks_uri": f"{provider.issuer}/.well-known/openid-configuration"}))
    with pytest.raises(Unavailable, match="calls itself"):
        fetch(CORP.model_copy(update={"issuer": f"{provider.issuer}/"}))


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    missing = IdentityProviders(tmp_path / "none.yaml", required=True, cache=tmp_path, interval_s=1)
    with pytest.raises(InvalidArgument, match="UAPI_GATEWAY_IDENTITY_PROVIDERS"):
        missing.load()
