"""What the rules that Envoy is sent follow."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from agentruntime.home import Home

from tests.uapi_gateway.test_registry import agent
from uapi_gateway.access.book import MOST_NAMED, Book
from uapi_gateway.access.identity import IdentityProviders
from uapi_gateway.access.store import KeyStore
from uapi_gateway.registry import Registry
from uapi_gateway.xds import filters, resources
from uapi_gateway.xds.cache import Cache

PROVIDERS = '{"providers": [{"name": "corp", "issuer": "https://corp", "audiences": ["uapi"]}]}'


@contextmanager
def booked(registry: Registry, directory: Path, providers: str) -> Iterator[tuple[Book, Cache]]:
    home, file, cache = Home(directory), directory / "identity-providers.yaml", Cache()
    file.write_text(providers)
    home.state.mkdir(parents=True)
    identity = IdentityProviders(file, required=True, cache=directory / "jwks", interval_s=60)
    identity.load()
    book = Book(KeyStore(home.state / "access.db"), registry, cache, identity, anonymous=False)
    with closing(book):
        book.publish(home)
        yield book, cache


def version(cache: Cache) -> str:
    rules = cache.get(resources.EXTENSION, filters.ACCESS)
    assert rules is not None
    return rules.version


def test_the_first_agents_are_named_in_the_rules_for_tokens(tmp_path: Path) -> None:
    registry = Registry()
    registry.put_pool_agent(agent("first"))
    with booked(registry, tmp_path, PROVIDERS) as (book, cache):
        assert list(book.policy.named) == ["first"]
        before = version(cache)
        registry.put_pool_agent(agent("another"))
        assert list(book.policy.named) == ["first", "another"]
        assert version(cache) != before
        for number in range(MOST_NAMED - 2):
            registry.put_pool_agent(agent(f"a{number}"))
        # With many, one more is nothing that all rules would have to be sent again for.
        full, before = book.policy.named, version(cache)
        assert len(full) == MOST_NAMED
        registry.put_pool_agent(agent("one-more"))
        assert (book.policy.named, version(cache)) == (full, before)
        registry.remove_pool_agent("first")
        assert book.policy.named == (*full[1:], "one-more")


def test_without_identity_providers_agents_change_no_rules(tmp_path: Path) -> None:
    registry = Registry()
    with booked(registry, tmp_path, '{"providers": []}') as (book, cache):
        before = version(cache)
        registry.put_pool_agent(agent("a"))
        assert (book.policy.named, version(cache)) == ((), before)
