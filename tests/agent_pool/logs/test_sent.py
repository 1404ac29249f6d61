"""How far logs have been sent, over the life of a pool."""

from pathlib import Path

import pytest

from agent_pool.logs.sent import Sent


def test_places_survive(tmp_path: Path) -> None:
    path = tmp_path / "sent" / "a.json"
    sent = Sent(path)
    assert sent.place("a-01", 7, 100) == 0
    sent.advance({"a-01": (7, 50), "a-02": (8, 60)})
    again = Sent(path)
    assert again.place("a-01", 7, 100) == 50
    assert again.place("a-01", 9, 100) == 0
    assert again.place("a-01", 7, 49) == 0
    again.forget_all_but(["a-01"])
    assert again.place("a-02", 8, 100) == 0
    assert [each.name for each in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', "nonsense"])
def test_what_cannot_be_read_is_sent_again(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    assert Sent(tmp_path / "a.json").place("a-01", 7, 100) == 0
