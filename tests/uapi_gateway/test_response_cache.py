"""The cache's bookkeeping: examples, and properties against a model that remembers everything."""

from hypothesis import given
from hypothesis import strategies as st

from uapi_gateway.registry import CachePolicy
from uapi_gateway.response_cache import OVERHEAD_BYTES, Answer, ResponseCache

WIDE = CachePolicy(10**6, 60.0)


def answer(size_bytes: int = 1) -> Answer:
    return Answer(b"x" * size_bytes)


def put(
    cache: ResponseCache, key: bytes, *, revision: str = "1", policy: CachePolicy = WIDE, now: float = 0.0
) -> None:
    cache.put("a", revision, key, answer(), policy=policy, now=now)


def test_an_answer_is_given_until_it_is_too_old() -> None:
    cache = ResponseCache()
    assert cache.get("a", "1", b"k", 0) is None
    put(cache, b"k")
    assert cache.get("a", "1", b"k", 59.9) == answer()
    assert cache.get("a", "1", b"k", 60.0) is None
    assert cache.get("b", "1", b"k", 1.0) is None
    figures = dict(cache.figures())["a"]
    assert (figures.hits, figures.misses, figures.evictions, figures.size_bytes) == (1, 2, 0, 0)


def test_what_was_not_used_for_longest_makes_room() -> None:
    cache = ResponseCache()
    policy = CachePolicy(2 * (OVERHEAD_BYTES + 1), 60.0)
    for key in (b"1", b"2"):
        put(cache, key, policy=policy)
    assert cache.get("a", "1", b"1", 1)
    put(cache, b"3", policy=policy)
    assert [cache.get("a", "1", key, 1) is not None for key in (b"1", b"2", b"3")] == [True, False, True]
    assert dict(cache.figures())["a"].evictions == 1


def test_an_answer_larger_than_the_room_is_not_kept_and_pushes_nothing_out() -> None:
    cache = ResponseCache()
    policy = CachePolicy(2000, 60.0)
    put(cache, b"1", policy=policy)
    cache.put("a", "1", b"2", answer(2000), policy=policy, now=0)
    assert cache.get("a", "1", b"1", 1)
    assert cache.get("a", "1", b"2", 1) is None


def test_another_revision_begins_empty() -> None:
    cache = ResponseCache()
    put(cache, b"k")
    assert cache.get("a", "2", b"k", 1) is None
    cache.keep("a", "2", WIDE)
    assert cache.get("a", "1", b"k", 1) is None
    put(cache, b"k", revision="2")
    put(cache, b"other", revision="3")
    assert cache.get("a", "2", b"k", 1) is None


def test_a_policy_that_changes_is_taken_up_at_once() -> None:
    cache = ResponseCache()
    for key in (b"1", b"2"):
        put(cache, key)
    cache.keep("a", "1", CachePolicy(OVERHEAD_BYTES + 1, 60.0))
    assert cache.get("a", "1", b"1", 1) is None
    assert cache.get("a", "1", b"2", 1)
    cache.keep("a", "1", CachePolicy(10**6, 5.0))
    assert cache.get("a", "1", b"2", 4.9)
    assert cache.get("a", "1", b"2", 5.0) is None
    put(cache, b"2", now=10)
    cache.keep("a", "1", CachePolicy(10**6, 5.0))
    cache.sweep(15)
    assert dict(cache.figures())["a"].size_bytes == 0
    put(cache, b"2", now=0)
    cache.keep("a", "1", None)
    assert cache.get("a", "1", b"2", 1) is None
    cache.keep("unknown", "1", None)
    cache.forget("a")
    cache.forget("a")
    assert list(cache.figures()) == []


def test_sweeping_frees_what_nobody_asks_for() -> None:
    cache = ResponseCache()
    put(cache, b"old")
    put(cache, b"new", now=30)
    cache.sweep(61)
    assert dict(cache.figures())["a"].size_bytes == OVERHEAD_BYTES + 1
    assert cache.get("a", "1", b"new", 61)


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["get", "put", "sweep", "keep"]),
        st.integers(0, 5),  # key
        st.integers(0, 3000),  # size
        st.sampled_from(["1", "2"]),  # revision
        st.floats(0, 40),  # time that passes
    ),
    max_size=60,
)


@given(_STEPS, st.integers(0, 6000))
def test_never_more_bytes_never_too_old_never_another_ones(
    steps: list[tuple[str, int, int, str, float]], max_bytes: int
) -> None:
    cache, policy, now = ResponseCache(), CachePolicy(max_bytes, 60.0), 0.0
    # What was last put under each key, when.
    truth: dict[tuple[str, bytes], tuple[Answer, float]] = {}
    for what, number, size, revision, passes_s in steps:
        now += passes_s
        key = bytes([number])
        match what:
            case "put":
                made = Answer(bytes([number]) * size)
                cache.put("a", revision, key, made, policy=policy, now=now)
                truth = {k: v for k, v in truth.items() if k[0] == revision}
                truth[revision, key] = (made, now)
            case "get":
                found = cache.get("a", revision, key, now)
                if found is not None:
                    last, at = truth[revision, key]
                    assert found is last
                    assert now < at + 60.0
            case "sweep":
                cache.sweep(now)
            case "keep":
                cache.keep("a", revision, policy)
                truth = {k: v for k, v in truth.items() if k[0] == revision}
        for _, figures in cache.figures():
            assert 0 <= figures.size_bytes <= max_bytes
    cache.sweep(now + 61)
    assert all(figures.size_bytes == 0 for _, figures in cache.figures())
