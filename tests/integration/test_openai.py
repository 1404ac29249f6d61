"""The official OpenAI client against a whole platform."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai import OpenAI

from tests.integration.conftest import Platform
from tests.waiting import until

pytestmark = pytest.mark.integration

CODE = """
from agentruntime import Agent
from agentruntime.errors import InvalidArgument

class Talker(Agent):
    async def on_message(self, message, ctx):
        if message.text == "wait":
            yield "Waiting"
            await ctx.cancelled.wait()
            return
        if message.text == "fail":
            raise InvalidArgument("that is not done", reason="NOT_DONE")
        before = [f"{said.role}: {said.text}" for said in await ctx.history()]
        yield f"{len(before)} before"
        for said in before:
            yield f"; {said}"
"""


@pytest.fixture(scope="module")
def client(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """With an agent `talker` that says what was said before."""
    project: Path = tmp_path_factory.mktemp("talker")
    (project / "agent.yaml").write_text("name: talker\nversion: '1'\nentrypoint: talker:Talker\n")
    (project / "talker.py").write_text(CODE)
    platform.agent("build", str(project))
    platform.agent("run", "talker:1")
    with OpenAI(base_url=f"{platform.http_address}/v1", api_key="sk-none", max_retries=0, timeout=60) as client:
        yield client
    platform.agent("stop", "talker")


def test_models(client: OpenAI) -> None:
    assert {"talker", "echo", "mock-ai"} <= {model.id for model in client.models.list()}
    with pytest.raises(openai.NotFoundError, match="agent 'nobody' not found"):
        client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "Hi"}])


def test_chat_completions_bring_their_history(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="talker",
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "And now?"},
        ],
    )
    assert answer.choices[0].message.content == "3 before; system: Be brief.; user: Hi; assistant: Hello."
    stream = client.chat.completions.create(
        model="talker", messages=[{"role": "user", "content": "Hi"}], stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    *chunks, last = stream
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "0 before"
    assert last.usage is not None
    assert last.usage.total_tokens == 3


def test_an_agent_that_only_generates(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "Hi there"}])
    assert "Hi there" in (answer.choices[0].message.content or "")
    assert "Hi there" in client.responses.create(model="echo", input="Hi there").output_text


def test_responses_go_on_with_a_conversation(client: OpenAI) -> None:
    one = client.responses.create(model="talker", input="One", instructions="Be brief.")
    assert one.output_text == "1 before; system: Be brief."
    two = client.responses.create(model="talker", input="Two", previous_response_id=one.id)
    assert two.output_text.startswith("3 before; ")
    branch = client.responses.create(model="talker", input="Or", previous_response_id=one.id)
    assert branch.output_text == two.output_text
    assert branch.conversation != two.conversation
    assert client.responses.retrieve(two.id).model_dump() == two.model_dump()
    assert [item.id for item in client.responses.input_items.list(one.id)]


def test_a_stream_goes_on_where_it_was_left(client: OpenAI) -> None:
    with client.responses.stream(model="talker", input="Hi", conversation="kept") as stream:
        events = list(stream)
        final = stream.get_final_response()
    rest = client.responses.retrieve(final.id, stream=True, starting_after=3)
    assert [event.type for event in rest] == [event.type for event in events[4:]]


def test_background_and_cancel(client: OpenAI) -> None:
    made = client.responses.create(model="talker", input="wait", background=True)
    until(lambda: client.responses.retrieve(made.id).status == "in_progress")
    ended = client.responses.cancel(made.id)
    assert ended.status == "cancelled"
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)


def test_what_an_agent_raises(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="that is not done") as failure:
        client.responses.create(model="talker", input="fail")
    assert failure.value.code == "NOT_DONE"
    stream = client.responses.create(model="talker", input="fail", stream=True)
    assert [event.type for event in stream][-1] == "response.failed"


def test_what_is_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as failure:
        client.responses.create(model="talker", input="Hi", tools=[{"type": "web_search"}])
    assert (failure.value.param, failure.value.code) == ("tools", "UNSUPPORTED_PARAMETER")
    bad = client.with_options(api_key="uapi_none.of.ours")
    with pytest.raises(openai.AuthenticationError):
        bad.models.list()
