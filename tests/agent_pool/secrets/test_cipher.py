"""Encryption at rest, and the file with the key."""

import stat
from pathlib import Path

import pytest
from agentruntime import errors

from agent_pool.secrets import cipher


def test_a_value_is_read_with_its_key_name_and_agents_only(tmp_path: Path) -> None:
    key = cipher.make_key(tmp_path / "key")
    sealed = cipher.encrypt(key, "openai", ["a"], b"sk-1")
    assert b"sk-1" not in sealed
    assert cipher.encrypt(key, "openai", ["a"], b"sk-1") != sealed
    assert cipher.decrypt(key, "openai", ["a"], sealed) == b"sk-1"
    for other in (
        (cipher.make_key(tmp_path / "other"), "openai", ["a"], sealed),
        (key, "stripe", ["a"], sealed),
        (key, "openai", ["a", "b"], sealed),
        (key, "openai", ["a"], sealed[:-1]),
        (key, "openai", ["a"], b""),
    ):
        with pytest.raises(cipher.Undecipherable):
            cipher.decrypt(*other)


def test_the_key_is_one_users(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert cipher.read_key(path) is None
    key = cipher.make_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert cipher.read_key(path) == key
    path.chmod(0o644)
    with pytest.raises(errors.FailedPrecondition, match="chmod 600"):
        cipher.read_key(path)
    path.chmod(0o440)  # as a systemd credential's
    assert cipher.read_key(path) == key


@pytest.mark.parametrize("content", [b"", b"c2hvcnQ=", b"\xff" * 44])
def test_what_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(errors.FailedPrecondition, match="holds no key"):
        cipher.read_key(path)


def test_a_key_is_never_written_over(tmp_path: Path) -> None:
    cipher.make_key(tmp_path / "key")
    with pytest.raises(errors.FailedPrecondition, match="cannot be made"):
        cipher.make_key(tmp_path / "key")
