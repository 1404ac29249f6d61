"""What a worker printed past Python is written over."""

import os
from pathlib import Path

from agentruntime.redaction import Redactor

from agent_pool.logs import LogStore, scrubbing
from agent_pool.logs.scrubbing import Scrubber

VALUE = b"sk-0123456789"


def test_values_are_written_over_wherever_they_come(tmp_path: Path) -> None:
    redactors = {"a": Redactor({"k": [VALUE]})}
    logs = LogStore(tmp_path, redactor=lambda agent: redactors.get(agent, Redactor({})))
    scrubber = Scrubber(logs)
    log, other = logs.open("a", "a-01"), logs.open("b", "b-01")
    os.write(log, b"one " + VALUE + b"\ntwo " + VALUE[:5])
    os.write(other, VALUE)
    assert not scrubber.look()
    os.write(log, VALUE[5:] + b"\nthree\n")
    assert not scrubber.look()
    assert logs.path("a", "a-01").read_bytes() == b"one [secret k]***\ntwo [secret k]***\nthree\n"
    assert logs.path("b", "b-01").read_bytes() == VALUE
    # Another file of that name.
    logs.path("a", "a-01").unlink()
    assert not scrubber.look()
    os.close(log)
    log = logs.open("a", "a-01")
    os.write(log, VALUE)
    assert not scrubber.look()
    assert VALUE not in logs.path("a", "a-01").read_bytes()
    os.close(log)
    os.close(other)


def test_a_long_log_is_looked_at_in_pieces(tmp_path: Path) -> None:
    logs = LogStore(tmp_path, redactor=lambda _: Redactor({"k": [VALUE]}))
    log = logs.open("a", "a-01")
    edge = scrubbing._PIECE_BYTES - 5
    os.write(log, b"x" * edge + VALUE + b"x" * 100)
    scrubber = Scrubber(logs)
    assert scrubber.look()
    assert not scrubber.look()
    content = logs.path("a", "a-01").read_bytes()
    assert (VALUE in content, len(content)) == (False, edge + len(VALUE) + 100)
    os.close(log)
