"""What `--describe` says, read."""

import base64
import json

import pytest
from agentruntime import errors

from agent_pool.drivers.docker_images import described
from tests.agent_pool.drivers.test_docker_request import revision


def test_services_and_descriptors() -> None:
    said = json.dumps({"services": ["a.B"], "descriptors": base64.b64encode(b"set").decode()})
    prepared = described(revision(), said, "exit status 0", "")
    assert (prepared.services, prepared.descriptors) == (("a.B",), b"set")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ('{"error": "KeyError: 1", "traceback": "Traceback: it"}', "failed to import: KeyError: 1\nTraceback: it"),
        ('{"error": "no class", "traceback": ""}', "agent 'a' failed to import: no class"),
        ("", "agent 'a' failed to import: exit status 7:\nlast words"),
        ("[" * 100_000, "agent 'a' failed to import: exit status 7:\nlast words"),
        ('{"services": ["\\ud800"], "descriptors": ""}', "agent 'a' failed to import: exit status 7:\nlast words"),
        ('{"services": ["a.B", 5], "descriptors": ""}', "agent 'a' failed to import: exit status 7:\nlast words"),
        ('{"services": ["a.B"], "descriptors": "?"}', "agent 'a' failed to import: exit status 7:\nlast words"),
        (f'{{"services": ["{"a" * 2**23}"], "descriptors": ""}}', "exit status 7:\nlast words"),
        ('{"error": "\\ud800", "traceback": 5}', "agent 'a' failed to import: ?"),
        ('{"services": 5}', "agent 'a' failed to import: exit status 7:\nlast words"),
    ],
)
def test_what_did_not_import(said: str, message: str) -> None:
    with pytest.raises(errors.AgentFailed) as failure:
        described(revision(), said, "exit status 7", "last words")
    assert failure.value.message.endswith(message)


def test_words_are_trimmed() -> None:
    for said in ('{"error": "", "traceback": "%s"}' % ("x" * 10**6), ""):
        with pytest.raises(errors.AgentFailed) as failure:
            described(revision(), said, "exit status 7", "x" * 10**6)
        assert len(failure.value.message) < 20_000
