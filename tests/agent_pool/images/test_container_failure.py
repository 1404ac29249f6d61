"""What is said of a container image whose build fails, without an engine."""

import threading
from pathlib import Path

import pytest
from agentruntime import errors

from agent_pool.images import container
from agent_pool.images.recipe import Recipe

WANTED = Recipe("sha256:0", "sha256:1", "", "tester", "base:1", Path())


@pytest.mark.parametrize(
    ("lines", "says"),
    [(1, "no base image base:1 and cannot pull it \\(bad\\)"), (1000, "cannot be made:\\n992\\n(\\d+\\n){7}bad$")],
)
def test_the_last_lines_are_told(lines: int, says: str) -> None:
    events = iter([*({"stream": f"{line}\n"} for line in range(lines)), {"error": "bad"}])
    with pytest.raises(errors.FailedPrecondition, match=says):
        container._built(WANTED, events, lambda _: None, threading.Event())
