"""What an agent's author reads, and what secrets may be called."""

from pathlib import Path

import pytest
from agentruntime import errors, secrets


def test_a_secret_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert secrets.directory() == Path("/run/secrets")
    monkeypatch.setenv(secrets.VARIABLE, str(tmp_path))
    (tmp_path / "openai").write_bytes(b"sk-1\n")
    assert (secrets.read("openai"), secrets.text("openai")) == (b"sk-1\n", "sk-1")
    with pytest.raises(errors.FailedPrecondition, match="agent secrets set other"):
        secrets.read("other")
    with pytest.raises(errors.InvalidArgument):
        secrets.read("../openai")


@pytest.mark.parametrize("name", ["openai", "a", "A.b-c_d", "0", "x" * 63])
def test_names(name: str) -> None:
    assert secrets.split(name) == ("", name)
    assert secrets.split(f"my-agent/{name}") == ("my-agent", name)


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "a.", "a/b/c", "/a", "a/", "A/b", "a b", "é", "x" * 64, "a\n"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        secrets.split(name)
