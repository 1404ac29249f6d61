"""Reading, following, and keeping within bounds, under a writer that never stops."""

import asyncio
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from agentruntime import errors
from agentruntime.redaction import Redactor

from agent_pool.logs import LogPolicy, LogStore
from agent_pool.logs.sent import Sent
from agent_pool.logs.shipping import Sender
from tests.waiting import eventually

WRITER = "import sys\nfor n in range(int(sys.argv[1])): sys.stdout.write(f'line {n}\\n'); sys.stdout.flush()"


@pytest.fixture
def store(tmp_path: Path) -> LogStore:
    return LogStore(tmp_path)


def bounded(tmp_path: Path, policy: LogPolicy) -> LogStore:
    return LogStore(tmp_path, lambda _: policy)


def write(store: LogStore, worker_id: str, text: str) -> None:
    descriptor = store.open("a", worker_id)
    os.write(descriptor, text.encode())
    os.close(descriptor)


def at(seconds: float, event: str, level: str = "info") -> str:
    moment = datetime.fromtimestamp(seconds, UTC).isoformat()
    return json.dumps({"event": event, "level": level, "time": moment}) + "\n"


def texts(
    store: LogStore, *names: str, level: str = "", tail: int | None = None, since_s: float | None = None
) -> list[str]:
    found = store.past("a", list(names), level=level, tail=tail, since_s=since_s)
    return [json.loads(line.text)["event"] if line.text.startswith("{") else line.text for line in found]


def writing(store: LogStore, code: str, *arguments: str) -> subprocess.Popen[bytes]:
    descriptor = store.open("a", "a-01")
    writer = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=descriptor)
    os.close(descriptor)
    return writer


def test_what_is_kept_is_the_end_whole_and_in_order(tmp_path: Path) -> None:
    store = bounded(tmp_path, LogPolicy(max_bytes=200_000))
    count = 40_000
    writer = writing(store, WRITER, str(count))
    while writer.poll() is None:
        store.maintain(time.time())
        store.hold_bounds()
    assert writer.returncode == 0
    store.maintain(time.time())
    found = texts(store, "a-01")
    assert 10_000 < len(found) < 20_000
    assert found == [f"line {n}" for n in range(count - len(found), count)]


def test_order_of_time_over_workers(store: LogStore) -> None:
    write(store, "a-01", at(1, "one") + "bare\n" + at(5, "five"))
    write(store, "a-02", at(2, "two") + at(3, "three") + "half")
    assert texts(store, "a-01", "a-02") == ["one", "bare", "two", "three", "half", "five"]
    assert texts(store, "a-01", "a-02", tail=3) == ["three", "half", "five"]
    assert texts(store, "a-01", "a-09") == ["one", "bare", "five"]


def test_levels_and_tails(store: LogStore) -> None:
    write(store, "a-01", at(1, "bad", "error") + "bare\n" + at(2, "hm", "warning") + at(3, "x", "debug"))
    assert [line.level for line in store.past("a", ["a-01"])] == ["ERROR", "INFO", "WARNING", "DEBUG"]
    assert texts(store, "a-01", level="WARNING") == ["bad", "hm"]
    assert texts(store, "a-01", level="WARNING", tail=1) == ["hm"]
    assert texts(store, "a-01", level="ERROR", tail=5) == ["bad"]
    assert texts(store, "a-01", level="INFO", tail=2) == ["bare", "hm"]
    assert texts(store, "a-01", tail=0) == []
    assert store.last_words("a", "a-01").splitlines()[-1].startswith("{")
    assert store.last_words("a", "a-09") == ""
    fatal = ["Fatal Python error: Segmentation fault", "", *(f'  File "a.py", line {n} in f' for n in range(20))]
    write(store, "a-03", "before\n" + "".join(f"{line}\n" for line in fatal))
    assert store.last_words("a", "a-03").splitlines()[1:] == fatal
    assert store.agent_of("a-01") == "a"
    assert store.agent_of("a-09") is None
    assert store.agents() == ["a"]


@pytest.mark.parametrize("count", [3, 30_000])
def test_since(store: LogStore, count: int) -> None:
    write(store, "a-01", "".join(at(n, str(n)) + f"bare {n}\n" for n in range(count)))
    os.utime(store.path("a", "a-01"), (count, count))
    assert texts(store, "a-01", since_s=count - 2)[:3] == [f"bare {count - 3}", str(count - 2), f"bare {count - 2}"]
    assert texts(store, "a-01", since_s=count - 1, tail=3) == [
        f"bare {count - 2}",
        str(count - 1),
        f"bare {count - 1}",
    ]
    assert texts(store, "a-01", since_s=count - 0.5) == [f"bare {count - 1}"]
    assert texts(store, "a-01", since_s=count + 1) == []
    assert len(texts(store, "a-01", since_s=0)) == 2 * count


async def test_secrets_are_left_out_for_every_reader(tmp_path: Path) -> None:
    store = LogStore(tmp_path, redactor=lambda agent: Redactor({"k": [b"sk-0123456789"]} if agent == "a" else {}))
    write(store, "a-01", "plain sk-0123456789\n" + at(1.0, "event sk-0123456789"))
    told = ["plain [secret k]", "event [secret k]"]
    assert texts(store, "a-01") == told
    assert texts(store, "a-01", tail=1) == told[1:]
    assert store.last_words("a", "a-01").splitlines()[1] == told[0]
    sent = Sender(store, "a", "fluentd://localhost:1", Sent(tmp_path / "sent.json"))._chunk()
    assert sorted(str(entry["event"]) for _, entry in sent.entries) == sorted(told)
    lines = store.stream("a", lambda: ["a-01"], level="", tail=0, follow=True)
    following = asyncio.ensure_future(anext(lines))
    await asyncio.sleep(0)
    write(store, "a-01", "more sk-0123456789\n")
    assert (await asyncio.wait_for(following, 10)).text == "more [secret k]"
    await lines.aclose()


async def test_follow_while_it_is_trimmed_and_logs_come_and_go(tmp_path: Path) -> None:
    store = bounded(tmp_path, LogPolicy(max_bytes=20_000))
    write(store, "a-01", "".join(f"old {n}\n" for n in range(10_000)))
    seen = []
    asked: list[list[str]] = []

    def names() -> list[str]:
        asked.append(store.logs_of("a"))
        return asked[-1]

    async def succeed() -> None:
        store.path("a", "a-02").unlink()
        await eventually(lambda: asked[-1] == ["a-01"])
        write(store, "a-02", "its successor\n")

    stream = store.stream("a", names, level="", tail=2, follow=True)
    async with asyncio.timeout(20):
        async for line in stream:
            seen.append(line.text)
            if line.text == "old 9999":
                write(store, "a-01", "new 0\nnew 1\nhal")
                store.maintain(time.time())
                write(store, "a-01", "f\n")
                write(store, "a-02", "another\n")
            if line.text == "another":
                succeeding = asyncio.create_task(succeed())
            if line.text == "its successor":
                break
    await succeeding
    await stream.aclose()
    assert seen == ["old 9998", "old 9999", "new 0", "new 1", "half", "another", "its successor"]


async def test_following_a_worker_that_never_stops_writing_leaves_room_for_all_else(
    store: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = []

    def endless(*_: object) -> list[bytes]:
        rounds.append(1)
        return [b'{"event": "x", "level": "info"}']

    write(store, "a-01", "x\n")
    monkeypatch.setattr("agent_pool.logs.store._Reader.read", endless)
    stream = store.stream("a", lambda: ["a-01"], level="error", tail=0, follow=True)
    following = asyncio.ensure_future(anext(stream))
    await eventually(lambda: len(rounds) > 10)
    assert not following.done()
    following.cancel()
    await asyncio.wait([following])


async def test_a_level_that_is_none(store: LogStore) -> None:
    with pytest.raises(errors.InvalidArgument):
        await anext(store.stream("a", list, level="loud", tail=None, follow=False))


def test_following_a_log_that_is_trimmed_beyond_its_end_of_a_moment_ago(store: LogStore) -> None:
    write(store, "a-01", "one\ntwo\n")
    reader = store._reader("a", "a-01")
    with store.path("a", "a-01").open("rb") as stream:
        assert reader._next(stream.fileno(), 2) == []
    write(store, "a-01", "three\n")
    assert [line.text for line in store._fresh("a", reader)] == ["three"]


def test_lines_as_objects(tmp_path: Path) -> None:
    store = bounded(tmp_path, LogPolicy(as_objects=True))
    write(store, "a-01", at(1, "one", "error") + "of a child\n{broken\n")
    found = [json.loads(line.text) for line in store.past("a", ["a-01"])]
    assert found[1] == {
        "event": "of a child", "level": "info", "time": "1970-01-01T00:00:01Z", "worker_id": "a-01", "agent": "a",
    }  # fmt: skip
    assert [entry["event"] for entry in found] == ["one", "of a child", "{broken"]
    assert all(entry["worker_id"] == "a-01" for entry in found)


def test_retention_by_age(tmp_path: Path) -> None:
    store = bounded(tmp_path, LogPolicy(retention_s=100, living=frozenset({"a-01", "a-02"})))
    write(store, "a-01", at(1, "old") + "bare\n" + at(500, "new"))
    for name in ("a-02", "a-03"):
        write(store, name, at(1, "old"))
        os.utime(store.path("a", name), (1, 1))
    os.utime(store.path("a", "a-01"), (500, 500))
    store.path("a", "a-01").with_suffix(".log.1").touch()
    os.utime(store.path("a", "a-01").with_suffix(".log.1"), (1, 1))
    store.maintain(550)
    assert texts(store, "a-01") == ["bare", "new"]
    # A process may hold it open.
    assert store.logs_of("a") == ["a-01", "a-02"]
    assert texts(store, "a-02") == []
    write(store, "a-02", "more\n")
    assert texts(store, "a-02") == ["more"]
    assert len(list(store.path("a", "a-01").parent.iterdir())) == 2


def test_logs_of_agents_that_are_gone(tmp_path: Path) -> None:
    store = bounded(tmp_path, LogPolicy(retention_s=100))
    write(store, "a-01", "x\n")
    store.maintain(time.time())
    assert store.agents() == ["a"]
    store.maintain(time.time() + 200)
    assert store.agents() == []
    store.maintain(time.time())
    store.hold_bounds()


def test_what_is_no_log_keeps_no_log_from_being_kept(tmp_path: Path) -> None:
    store = bounded(tmp_path, LogPolicy(retention_s=100, living=frozenset({"a-01"})))
    write(store, "a-01", at(1, "old") + at(500, "new"))
    write(store, "a-02", "later\n")
    agents = store.path("a", "a-01").parent.parent
    (agents / "A").touch()
    for stray in ("a-00.log", "kept"):
        (agents / "a" / stray).mkdir()
        os.utime(agents / "a" / stray, (1, 1))
    (agents / "Z").symlink_to("nowhere")
    assert store.agents() == ["a"]
    store.maintain(550)
    assert texts(store, "a-01") == ["new"]


def test_one_agents_logs_that_cannot_be_kept_keep_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = bounded(tmp_path, LogPolicy(retention_s=100))
    write(store, "a-01", at(500, "new"))
    os.close(store.open("b", "b-01"))
    os.utime(store.path("b", "b-01"), (1, 1))

    def refuse(*_: object) -> None:
        raise PermissionError("not this one")

    monkeypatch.setattr("agent_pool.logs.store.retention.drop_older", refuse)
    store.maintain(550)
    assert store.agents() == ["a"]
