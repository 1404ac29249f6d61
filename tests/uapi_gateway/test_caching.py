"""Which calls may be answered from the cache, and when two calls are the same."""

from dataclasses import replace

import pytest

from tests.uapi_gateway.test_descriptors import file, files
from tests.uapi_gateway.test_registry import agent
from uapi_gateway import descriptors
from uapi_gateway.caching import Caching, cacheable, is_unary, key_of, may_repeat
from uapi_gateway.registry import Agent, CachePolicy, Endpoint, Registry
from uapi_gateway.response_cache import Answer
from uapi_gateway.xds.routes import CACHE_HEADER, CONVERSATION_HEADER

TEXT = descriptors.TEXT_GENERATION
GENERATE = f"/{TEXT}/GenerateText"
KNOWN = agent("a", "a-01", services=(TEXT,), cache=CachePolicy(10_000), revision=1)


def not_idempotent() -> bytes:
    made = file("a.proto", "p", "x")
    made.service[0].method[0].ClearField("options")
    return files(made)


@pytest.mark.parametrize(
    ("known", "method", "expected"),
    [
        (KNOWN, GENERATE, True),
        (KNOWN, f"/{TEXT}/GetHealth", False),
        (KNOWN, f"/{TEXT}/StreamText", False),
        (KNOWN, "/p.S/Do", False),
        (replace(KNOWN, cache=None), GENERATE, False),
        (replace(KNOWN, idempotent=False), GENERATE, False),
        (replace(KNOWN, stopped=True), GENERATE, False),
        (replace(KNOWN, services=("p.S",), descriptors=files(file("a.proto", "p", "x"))), "/p.S/Do", True),
        (replace(KNOWN, services=("p.S",), descriptors=not_idempotent()), "/p.S/Do", False),
    ],
)
def test_what_may_be_kept(known: Agent, method: str, expected: bool) -> None:
    assert cacheable(known, method) is expected


def test_methods() -> None:
    assert is_unary(KNOWN, GENERATE)
    assert not is_unary(KNOWN, f"/{TEXT}/StreamText")
    assert not is_unary(KNOWN, "/p.S/Unknown")
    assert may_repeat(KNOWN, f"/{TEXT}/StreamText")
    assert not may_repeat(replace(KNOWN, idempotent=False), GENERATE)
    # The agent's own descriptors say it as well.
    own = descriptors.platform_subset([TEXT])
    assert is_unary(replace(KNOWN, descriptors=own), GENERATE)


def test_keys() -> None:
    key = key_of(KNOWN, GENERATE, [("authorization", "one")], b"request")
    silent = [("authorization", "one"), ("traceparent", "00-1"), ("x-uapi-agent", "a")]
    assert key_of(KNOWN, GENERATE, silent, b"request") == key
    others = {
        key,
        key_of(KNOWN, GENERATE, [("authorization", "two")], b"request"),
        key_of(KNOWN, GENERATE, [], b"request"),
        key_of(KNOWN, GENERATE, [("authorization", "one")], b"other"),
        key_of(KNOWN, GENERATE, [("authorization", "one"), ("x-user", "me")], b"request"),
        key_of(KNOWN, GENERATE, [("authorizatio", "none")], b"request"),
        key_of(KNOWN, f"/{TEXT}/Other", [("authorization", "one")], b"request"),
        key_of(replace(KNOWN, agent_id="b"), GENERATE, [("authorization", "one")], b"request"),
    }
    assert len(others) == 8
    pairs: list[tuple[str, str | bytes]] = [("x-a-bin", b"\xff"), ("x-b", "1")]
    assert key_of(KNOWN, GENERATE, pairs, b"") == key_of(KNOWN, GENERATE, pairs[::-1], b"")
    twice: list[tuple[str, str | bytes]] = [("x-a", "1"), ("x-a", "2")]
    assert key_of(KNOWN, GENERATE, twice, b"") != key_of(KNOWN, GENERATE, twice[::-1], b"")


def test_only_answers_of_the_present_revision_are_kept() -> None:
    registry = Registry()
    kept = Caching(registry)
    registry.put_pool_agent(KNOWN)
    question = kept.question(registry.require("a"), GENERATE, [], b"")
    assert question is not None
    canary = Endpoint("unix:/a-02", ready=True, worker_id="a-02", revision=2)
    kept.keep(question, canary, Answer(b"canary"))
    assert kept.look_up(question) is None
    current = Endpoint("unix:/a-01", ready=True, worker_id="a-01", revision=1)
    kept.keep(question, current, Answer(b"1"))
    assert kept.look_up(question) == Answer(b"1")
    # Asked before the update, answered after it.
    registry.put_pool_agent(replace(KNOWN, revision=2))
    kept.keep(question, current, Answer(b"1"))
    newer = kept.question(registry.require("a"), GENERATE, [], b"")
    assert newer is not None
    assert kept.look_up(newer) is None
    # Run anew under its name: its revisions count from one again.
    kept.keep(newer, canary, Answer(b"2"))
    registry.put_pool_agent(replace(KNOWN, revision=2, image_digest="sha256:other"))
    again = kept.question(registry.require("a"), GENERATE, [], b"")
    assert again is not None
    assert kept.look_up(again) is None
    registry.remove_pool_agent("a")
    kept.keep(again, canary, Answer(b"2"))
    assert list(kept.figures()) == []


@pytest.mark.parametrize("header", [CONVERSATION_HEADER, CACHE_HEADER])
def test_some_calls_want_their_answer_fresh(header: str) -> None:
    registry = Registry()
    registry.put_pool_agent(KNOWN)
    kept = Caching(registry)
    assert kept.question(registry.require("a"), GENERATE, [], b"") is not None
    assert kept.question(registry.require("a"), GENERATE, [(header, "x")], b"") is None
    assert kept.question(registry.require("a-01"), GENERATE, [], b"") is None
