"""What loading taught is found again for the same code, and shared."""

from dataclasses import replace

from agent_pool.drivers.base import Prepared
from agent_pool.known import Known
from tests.agent_pool.test_state import spec


def test_the_same_code_is_known_whatever_the_agent() -> None:
    known = Known()
    first = spec(3).driver_revision(60.0)
    assert known.find(first) is None
    prepared = Prepared(("x.Y",), b"descriptors")
    assert known.learn(first, prepared) is prepared
    other = replace(first, key="b@7", agent="b", number=7, agent_index=5)
    assert known.find(other) is prepared
    # A thousand agents share one.
    assert known.learn(other, Prepared(("x.Y",), b"descriptors")) is prepared


def test_what_could_make_a_difference_does() -> None:
    known = Known()
    first = spec(3).driver_revision(60.0)
    known.learn(first, Prepared(("x.Y",)))
    for changed in (
        {"image_digest": "sha256:1"},
        {"venv": "/elsewhere"},
        {"env": {"K": "other"}},
        {"host_network": not first.host_network},
    ):
        assert known.find(replace(first, **changed)) is None
    newer = Prepared(("x.Y", "x.Z"))
    assert known.learn(first, newer) is newer
    assert known.find(first) is newer
