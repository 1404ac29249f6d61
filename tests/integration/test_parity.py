"""The same conversations through every door: what comes back is the same, and so is what is on the log."""

import itertools
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from agentruntime.client import AsyncClient

from tests.integration.conftest import Platform
from tests.integration.conversing import AGENT, DOORS, Refused, opened

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

_CODE = '''
"""Says again what it is told, with how many messages that is."""

from agentruntime import Agent, errors


class Parrot(Agent):
    async def on_message(self, message, ctx):
        if message.text == "fail":
            raise errors.ResourceExhausted("no more words today", reason="OUT_OF_WORDS")
        said = [each for each in await ctx.history() if each.role == "user"]
        yield f"{len(said) + 1}: "
        for word in message.text.split():
            yield word + " "
'''
_MANIFEST = f"name: {AGENT}\nversion: 1.0.0\nentrypoint: parrot:Parrot\n"


@pytest.fixture(scope="module")
def parrots(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    project: Path = tmp_path_factory.mktemp("parrot")
    (project / "agent.yaml").write_text(_MANIFEST)
    (project / "parrot.py").write_text(_CODE)
    platform.agent("build", str(project))
    platform.agent("run", f"{AGENT}:1.0.0", "--replicas", "2")
    yield platform
    platform.agent("stop", AGENT)


async def _log(platform: Platform, conversation: str, key: str = "") -> list[tuple[str, str]]:
    """What happened in a conversation: the kinds of its events, with their texts."""
    async with AsyncClient(platform.grpc_address, token=key) as client:
        events = [event async for event in client.conversation(AGENT, conversation).watch()]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    happened: list[tuple[str, str]] = []
    for event in events:
        kind = event.WhichOneof("content") or ""
        content = getattr(event, kind)
        text = content.text if kind == "chunk" else "".join(each.text for each in getattr(content, "parts", ()))
        happened.append((kind, text))
    return happened


def _expected(*messages: str) -> list[tuple[str, str]]:
    happened: list[tuple[str, str]] = []
    for number, text in enumerate(messages, 1):
        pieces = [f"{number}: ", *(f"{word} " for word in text.split())]
        happened += [("message", text), ("attempt", ""), *(("chunk", piece) for piece in pieces)]
        happened.append(("completion", "".join(pieces)))
    return happened


def _gathered(happened: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Pieces of one reply may be written together."""
    return [
        (kind, "".join(text for _, text in group)) if kind == "chunk" else each
        for kind, members in itertools.groupby(happened, key=lambda each: each[0])
        for group in [list(members)]
        for each in ([group[0]] if kind == "chunk" else group)
    ]


@pytest.mark.parametrize("name", DOORS)
async def test_a_conversation_is_the_same(parrots: Platform, name: str) -> None:
    conversation = uuid.uuid4().hex
    async with opened(name, parrots) as door:
        assert await door.say(conversation, "good morning") == "1: good morning "
        assert "".join(await door.stream(conversation, "how are you")) == "2: how are you "
        assert await door.say(conversation, "bye") == "3: bye "
    assert _gathered(await _log(parrots, conversation)) == _gathered(_expected("good morning", "how are you", "bye"))


@pytest.mark.parametrize("name", DOORS)
async def test_a_failure_says_why(parrots: Platform, name: str) -> None:
    async with opened(name, parrots) as door:
        for way in (door.say, door.stream):
            with pytest.raises(Refused, match="no more words today"):
                await way(uuid.uuid4().hex, "fail")


async def test_a_conversation_goes_on_at_any_other_door(parrots: Platform) -> None:
    conversation = uuid.uuid4().hex
    for number, name in enumerate(DOORS, 1):
        async with opened(name, parrots) as door:
            assert await door.say(conversation, f"from {name}") == f"{number}: from {name} "
    assert _gathered(await _log(parrots, conversation)) == _gathered(_expected(*(f"from {name}" for name in DOORS)))


async def test_nor_does_the_terminal_stand_apart(parrots: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a credential; whoever shows the same one elsewhere has the same conversation."""
    conversation, texts = uuid.uuid4().hex, []
    key = parrots.agent("keys", "create", "--name", "parity", "--agents", AGENT).stdout.strip()

    def chat(text: str) -> str:
        texts.append(text)
        with monkeypatch.context() as environment:
            environment.setenv("UAPI_ENDPOINT", parrots.grpc_address)
            environment.setenv("UAPI_AUTH_TOKEN", key)
            return parrots.agent("chat", AGENT, "--conversation", conversation, "--message", text).stdout.strip()

    assert chat("from the terminal") == "1: from the terminal"
    for name in DOORS:
        if name != "a2a-grpc":
            texts.append(f"from {name}")
            async with opened(name, parrots, key) as door:
                assert "".join(await door.stream(conversation, texts[-1])) == f"{len(texts)}: {texts[-1]} "
    assert chat("back") == f"{len(texts)}: back"
    assert _gathered(await _log(parrots, conversation, key)) == _gathered(_expected(*texts))
    parrots.agent("keys", "revoke", "parity")
