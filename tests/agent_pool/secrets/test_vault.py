"""The secrets of a pool, on disk and in memory."""

import sqlite3
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from agentruntime import errors, sealed
from agentruntime.redaction import Redactor

from agent_pool.secrets.vault import Vault

VALUE = b"sk-0123456789"


def vault(directory: Path) -> Vault:
    return Vault(directory, directory / "key")


async def test_what_is_set_is_there_after_a_restart_and_nowhere_in_the_clear(tmp_path: Path) -> None:
    first = vault(tmp_path)
    made = await first.put("openai", VALUE, ["a"])
    await first.put("c/openai", VALUE + b"2", ["c"])
    again = vault(tmp_path)
    assert again.all() == first.all()
    assert again.granted("a", ["openai"])["openai"] == made
    assert stat.S_IMODE((tmp_path / "secrets.db").stat().st_mode) == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {"key", "secrets.db"}
    assert all(VALUE not in path.read_bytes() for path in tmp_path.iterdir())


async def test_a_pool_without_secrets_makes_no_files(tmp_path: Path) -> None:
    assert vault(tmp_path).all() == []
    assert list(tmp_path.iterdir()) == []


async def test_values_and_agents_change_by_themselves(tmp_path: Path) -> None:
    kept = vault(tmp_path)
    first = await kept.put("openai", VALUE, ["a"])
    assert await kept.put("openai", VALUE, []) == first
    wider = await kept.put("openai", None, ["a", "b"])
    assert (wider.version, wider.value, wider.agents) == (first.version, VALUE, ("a", "b"))
    other = await kept.put("openai", b"another", [])
    assert (other.version != first.version, other.agents) == (True, ("a", "b"))
    assert vault(tmp_path).all() == [other]


async def test_what_is_deleted_is_gone(tmp_path: Path) -> None:
    kept = vault(tmp_path)
    await kept.put("openai", VALUE, ["a"])
    await kept.delete("openai")
    with pytest.raises(errors.NotFound):
        await kept.delete("openai")
    assert vault(tmp_path).all() == []
    assert b"openai" not in (tmp_path / "secrets.db").read_bytes()


@pytest.mark.parametrize(("value", "agents"), [(None, ["a"]), (VALUE, [])])
async def test_a_new_one_needs_a_value_and_agents(tmp_path: Path, value: bytes | None, agents: list[str]) -> None:
    with pytest.raises(errors.InvalidArgument):
        await vault(tmp_path).put("openai", value, agents)


async def test_without_its_key_a_secret_is_not_given_and_none_is_made_with_another(tmp_path: Path) -> None:
    await vault(tmp_path).put("openai", VALUE, ["a"])
    key = (tmp_path / "key").rename(tmp_path / "away")
    kept = vault(tmp_path)
    assert [each.name for each in kept.all()] == ["openai"]
    with pytest.raises(errors.SecretNotSet, match="another key"):
        kept.granted("a", ["openai"])
    with pytest.raises(errors.FailedPrecondition, match="is gone; put it back"):
        await kept.put("stripe", VALUE, ["a"])
    with pytest.raises(errors.InvalidArgument):
        await kept.put("openai", None, ["b"])
    key.rename(tmp_path / "key")
    assert vault(tmp_path).granted("a", ["openai"])["openai"].value == VALUE


async def test_a_row_that_was_given_to_another_agent_in_the_database_is_worth_nothing(tmp_path: Path) -> None:
    await vault(tmp_path).put("openai", VALUE, ["a"])
    with sqlite3.connect(tmp_path / "secrets.db") as database:
        database.execute("""UPDATE secrets SET agents = '["thief"]'""")
    database.close()
    with pytest.raises(errors.SecretNotSet):
        vault(tmp_path).granted("thief", ["openai"])


async def test_a_damaged_database_is_said(tmp_path: Path) -> None:
    (tmp_path / "secrets.db").write_bytes(b"nonsense" * 1000)
    with pytest.raises(errors.DataLoss):
        vault(tmp_path)


async def test_what_is_handed_over(tmp_path: Path) -> None:
    kept = vault(tmp_path)
    nothing = kept.hand_over("a", [])
    assert (nothing.descriptors, nothing.versions) == ([], {})
    await kept.put("a/openai", VALUE, ["a"])
    handed = kept.hand_over("a", ["openai"])
    assert sealed.unseal(*handed.descriptors) == {"openai": VALUE}
    assert handed.versions == kept.versions("a", ["openai"])
    assert kept.versions("a", ["openai", "missing"]) == {}


async def test_old_values_are_left_out_of_what_is_read_too(tmp_path: Path) -> None:
    kept = vault(tmp_path)
    await kept.put("openai", VALUE, ["a"])
    assert kept.redactor("a").redact(VALUE) == b"[secret openai]"
    assert not kept.redactor("b")
    await kept.put("openai", b"another-one", ["b"])
    assert kept.redactor("a").redact(VALUE + b" another-one") == b"[secret openai] another-one"
    await kept.delete("openai")
    assert kept.redactor("b").redact(b"another-one") == b"[secret openai]"


async def test_a_value_that_is_set_while_a_thread_reads_logs_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = vault(tmp_path)
    await kept.put("openai", VALUE, ["a"])
    begun, go_on, made = threading.Event(), threading.Event(), Redactor

    def slowly(values: Any) -> Any:
        begun.set()
        go_on.wait(10)
        return made(values)

    monkeypatch.setattr("agent_pool.secrets.vault.Redactor", slowly)
    reader = threading.Thread(target=kept.redactor, args=("a",))
    reader.start()
    begun.wait(10)
    threading.Timer(0.2, go_on.set).start()
    await kept.put("openai", b"another-one", ["a"])
    go_on.set()
    reader.join()
    assert kept.redactor("a").redact(b"another-one") == b"[secret openai]"
