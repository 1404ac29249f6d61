"""When two revisions are the same, and when only their caps differ."""

import pytest

from agent_pool.asked import Asked, AskedHandling, AskedIsolation, AskedPermissions, AskedServing
from agent_pool.resources import Requested, resolve
from agent_pool.revision import Program, Serving, Spec
from tests.agent_pool.test_state import spec


def asking(asked: Asked) -> Spec:
    return spec(4, asked=asked, resources=resolve(asked.resources))


PLAIN = asking(Asked())


@pytest.mark.parametrize(
    ("asked", "same", "same_but_for_caps"),
    [
        (Asked(), True, True),
        # What is the default anyway makes no difference.
        (Asked(network="isolated", log_level="INFO", env={"K": "v"}), True, True),
        (Asked(serving=AskedServing(queue=1024, debug=False)), True, True),
        (Asked(resources=Requested(memory_limit_bytes=512_000_000)), True, True),
        (Asked(resources=Requested(memory_bytes=10**8)), False, True),
        (Asked(resources=Requested(cpu_millis=500, pids_limit=100)), False, True),
        (Asked(resources=Requested(gpus=1)), False, False),
        (Asked(network="host"), False, False),
        # Nothing of which there is none can be limited.
        (Asked(isolation=AskedIsolation(network_limit_bps=10**6)), True, True),
        (Asked(env={"K": "w"}), False, False),
        (Asked(serving=AskedServing(concurrency=1)), False, False),
        (Asked(handling=AskedHandling("queue", "retry", 60.0)), True, True),
        (Asked(handling=AskedHandling("interrupt")), False, False),
    ],
)
def test_same_as(asked: Asked, same: bool, same_but_for_caps: bool) -> None:
    other = asking(asked)
    assert PLAIN.same_as(other) is other.same_as(PLAIN) is same
    assert PLAIN.same_but_for_caps(other) is other.same_but_for_caps(PLAIN) is same_but_for_caps


def test_a_network_limit_without_a_network_is_told_to_have_no_effect() -> None:
    limit = AskedIsolation(network_limit_bps=10**6)
    assert "no effect" in asking(Asked(isolation=limit)).without_effect
    assert not asking(Asked(network="host", isolation=limit)).without_effect
    assert not PLAIN.without_effect
    way_out = AskedPermissions(egress=("api.example.com:443",))
    assert "egress has no effect" in asking(Asked(network="host", permissions=way_out)).without_effect
    assert not asking(Asked(permissions=way_out)).without_effect
    limited, unlimited = (asking(Asked(network="host", isolation=AskedIsolation(None, None, bps))) for bps in (1, 0))
    assert not limited.same_as(unlimited)


def test_another_image_is_another_revision_and_its_number_and_cause_are_not() -> None:
    assert not PLAIN.same_as(PLAIN.model_copy(update={"image_digest": "sha256:" + "1" * 64}))
    assert PLAIN.same_as(PLAIN.model_copy(update={"number": 9, "cause": "update", "failure": "it died"}))


def test_what_drivers_see() -> None:
    program = Program(entrypoint="m:C", env={"A": "1", "B": "1"}, serving=Serving(concurrency=8, compression="gzip"))
    asked = Asked(env={"B": "2"}, venv="/venv", serving=AskedServing(queue=0, debug=True))
    made = spec(5, program=program, asked=asked, resources=resolve(Requested(memory_bytes=10**8, cpu_millis=200)))
    seen = made.driver_revision(7.0)
    assert (seen.key, seen.number, seen.start_timeout_s) == ("a@5", 5, 7.0)
    assert (seen.env, seen.venv, seen.host_network, seen.log_level) == ({"A": "1", "B": "2"}, "/venv", False, "INFO")
    assert (seen.concurrency, seen.queue, seen.compression, seen.optimize_throughput, seen.debug) == (
        8, 0, "gzip", False, True,
    )  # fmt: skip
    assert (seen.limits.memory_bytes, seen.limits.cpu_millis, seen.limits.pids) == (10**8, 200, 256)
    # One whose caps moved is made by the template that there was.
    assert made.model_copy(update={"number": 6, "loaded_as": 5}).driver_revision(7.0).key == "a@5"
