"""YAML by hand: what is read, and what is refused before it costs anything."""

import time
from pathlib import Path

import pytest
from agentruntime import documents, errors
from agentruntime.manifest import AgentManifest

# Each name stands for ten of the one before it: 10^20 in all.
_LAUGHS = "a0: &a0 [lol]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 20))
# The same by merged mappings, which are copied where they are read.
_MERGES = "m0: &m0 {a: 1}\n" + "".join(f"m{n}: &m{n} {{<<: [*m{n - 1}, *m{n - 1}]}}\n" for n in range(1, 40))


def test_what_is_small_is_read() -> None:
    assert documents.load("a: [1, {b: c}]") == {"a": [1, {"b": "c"}]}
    assert documents.load("") is None
    # A name for what is used nowhere harms nobody.
    assert documents.load("a: &x 1") == {"a": 1}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (_LAUGHS, r"\*a0 stands for what is written elsewhere; write it out"),
        (_MERGES, r"\*m0 stands for"),
        ("[" * 30_000, "nested too deeply"),
        ("- " * 30_000, "nested too deeply"),
        ("a: " + "{a: " * 40, "nested too deeply"),
        ("a: 2001-13-45", "is not YAML: month must be"),
        ("a: !!int x", "is not YAML"),
        ("a: !!float ''", "is not YAML"),
        ("a: !!timestamp x", "is not YAML"),
        ("a: !!python/object:os.system {}", "is not YAML"),
        (" " * 70_000, "is longer than 65536 bytes"),
        ("a: \x00", "is not YAML"),
    ],
)
def test_what_is_not_is_refused_at_once(text: str, why: str) -> None:
    begun_s = time.process_time()
    with pytest.raises(ValueError, match=why):
        documents.load(text)
    with pytest.raises(errors.InvalidManifest):
        AgentManifest.parse(text)
    assert time.process_time() - begun_s < 5


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    for content, why in ((b"\xff", "is not UTF-8"), (b" " * 70_000, "is longer")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=why):
            documents.read(file)
        with pytest.raises(errors.InvalidManifest, match=f"agent.yaml {why}"):
            AgentManifest.load(tmp_path)


def test_a_name_is_no_list() -> None:
    rest = "\nversion: '1'\nentrypoint: a:B"
    assert AgentManifest.parse("name: 7" + rest).name == "7"
    for name in ("[x]", "{a: b}", "null", "1.5", "2001-01-01"):
        with pytest.raises(errors.InvalidManifest, match="name"):
            AgentManifest.parse(f"name: {name}" + rest)
