"""What all routes have: models, who may call, errors in the API's form."""

import re

import httpx2
import openai
import pytest

from tests.uapi_gateway.http.openai.scripted import World, a_key, attempt
from uapi_gateway.access.policy import Policy
from uapi_gateway.registry import Demands


async def test_agents_are_models() -> None:
    async with World().client() as client:
        listed = [model async for model in client.models.list()]
        assert [(model.id, model.object, model.owned_by) for model in listed] == [
            ("helper", "model", "agentruntime"),
            ("other", "model", "agentruntime"),
        ]
        assert await client.models.retrieve("helper") == listed[0]
        for name in ("nobody", "silent"):
            with pytest.raises(openai.NotFoundError, match=f"agent '{name}' not found"):
                await client.models.retrieve(name)


async def test_a_model_that_is_not_there() -> None:
    async with World().client() as client:
        for create in (client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "Hi"}]),
                       client.responses.create(model="nobody", input="Hi")):  # fmt: skip
            with pytest.raises(openai.NotFoundError) as failure:
                await create
            assert failure.value.body == {
                "message": "agent 'nobody' not found",
                "type": "invalid_request_error",
                "param": "model",
                "code": "AGENT_NOT_FOUND",
            }


async def test_a_key_for_some_agents() -> None:
    world = World(policy=Policy(keys={"k1": a_key("helper")}, anonymous=False))
    async with world.client(**{"x-uapi-principal": "key:ci", "x-uapi-caller-key": "k1"}) as client:
        assert [model.id async for model in client.models.list()] == ["helper"]
        made = await client.responses.create(model="helper", input="Hi")
        assert (await client.responses.retrieve(made.id)).output_text == "You said Hi"
        with pytest.raises(openai.PermissionDeniedError) as failure:
            await client.responses.create(model="other", input="Hi")
        assert failure.value.code == "NOT_PERMITTED"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("other")


async def test_nobody_where_callers_must_be_known() -> None:
    world = World(policy=Policy(anonymous=False))
    async with world.client() as client:
        for call in (client.models.list(), client.models.retrieve("helper"), client.responses.retrieve("resp_x"),
                     client.responses.create(model="helper", input="Hi")):  # fmt: skip
            with pytest.raises(openai.AuthenticationError, match="send an API key") as failure:
                await call
            assert (failure.value.code, failure.value.type) == ("CREDENTIAL_MISSING", "authentication_error")


async def test_demands_of_an_agent_hold_here_too() -> None:
    world = World(policy=Policy(demands={"helper": Demands(tls=True)}))
    async with world.client() as client:
        assert [model.id async for model in client.models.list()] == ["other"]
        with pytest.raises(openai.AuthenticationError):
            await client.responses.create(model="helper", input="Hi")
    async with world.client(**{"x-uapi-caller-secure": "TLSv1.3"}) as client:
        assert (await client.responses.create(model="helper", input="Hi")).output_text == "You said Hi"


@pytest.mark.parametrize("why", ["grants", "demands"])
async def test_whoever_may_not_call_the_agent_reads_no_response_of_it(why: str) -> None:
    keyed = {"x-uapi-principal": "key:ci", "x-uapi-caller-key": "k1"}
    world = World(policy=Policy(keys={"k1": a_key("helper", "other")}, anonymous=False))
    async with world.client(**keyed) as client:
        made = await client.responses.create(model="helper", input="Hi")
        if why == "grants":
            world.policy = Policy(keys={"k1": a_key("other")}, anonymous=False)
        else:
            world.policy = Policy(keys=world.policy.keys, demands={"helper": Demands(tls=True)}, anonymous=False)
        for call in (client.responses.retrieve(made.id), client.responses.retrieve(made.id, stream=True),
                     client.responses.cancel(made.id), client.responses.delete(made.id),
                     client.responses.input_items.list(made.id)):  # fmt: skip
            with pytest.raises(openai.PermissionDeniedError) as failure:
                await call
            assert failure.value.code == "NOT_PERMITTED"
    assert len(world.log.events) == 1


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/files"), ("POST", "/v1/models"), ("GET", "/v1/chat/completions"), ("POST", "/v1/embeddings")],
)
async def test_what_is_not_there(method: str, path: str) -> None:
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(World().app)) as client:
        answer = await client.request(method, "http://localhost" + path)
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["code"], error["message"]) == ("UNKNOWN_URL", f"there is no {method} {path} here")


async def test_a_bug_says_nothing_of_itself() -> None:
    world = World()
    world.sender.script = lambda request: [attempt(int(request.message_id))]
    async with world.client() as client:
        with pytest.raises(openai.InternalServerError) as failure:
            await client.responses.create(model="helper", input="Hi")
    assert re.fullmatch("internal error, request id [0-9a-f]{16}", failure.value.body["message"])  # type: ignore[index] # as sent
    assert (failure.value.code, failure.value.type) == ("INTERNAL", "server_error")


async def test_a_body_that_is_too_long() -> None:
    async with World().client() as client:
        with pytest.raises(openai.APIStatusError) as failure:
            await client.responses.create(model="helper", input="x" * (4 * 2**20 + 1))
    assert (failure.value.status_code, failure.value.code) == (413, "MESSAGE_TOO_LARGE")
