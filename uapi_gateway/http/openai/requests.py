"""What callers send: `/v1/chat/completions` and `/v1/responses`, strict about types, lenient about unknown fields.

What an agent may make something of (temperature, stop, seed, …) reaches it as metadata of the message; what nobody
would heed and a caller could rely on (tools, forms of the answer, several choices) is refused.
"""

import json
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
)

from uapi_gateway.http import bounds
from uapi_gateway.http.openai.refusals import invalid, malformed, unsupported

# Of what a request says of itself; https://platform.openai.com/docs/api-reference has the same bounds.
_Metadata = dict[
    Annotated[str, StringConstraints(max_length=64)],
    Annotated[str, StringConstraints(max_length=512)],
]
_Few = Annotated[list[str], Field(fail_fast=True, max_length=bounds.MOST_PARTS)]
# Options among a message's metadata: those that every surface has, and before the names of the others.
TEMPERATURE, MAX_TOKENS, PREFIX = "temperature", "max_tokens", "openai."
# Among the metadata of the system message that a request's `instructions` are.
INSTRUCTIONS = PREFIX + "is_instructions"


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


class Text(_Model):
    type: Literal["text", "input_text", "output_text"]
    text: str


class Refusal(_Model):
    type: Literal["refusal"]
    refusal: str


class _Url(_Model):
    url: str


class ImageUrl(_Model):
    """As chat completions have it."""

    type: Literal["image_url"]
    image_url: _Url


class InputImage(_Model):
    """As responses have it."""

    type: Literal["input_image"]
    image_url: str | None = None


class _Audio(_Model):
    data: str
    format: Literal["wav", "mp3"]


class InputAudio(_Model):
    type: Literal["input_audio"]
    input_audio: _Audio


class _File(_Model):
    file_data: str | None = None
    filename: str | None = None


class ChatFile(_Model):
    type: Literal["file"]
    file: _File


class InputFile(_File):
    type: Literal["input_file"]
    file_url: str | None = None


ContentPart = Annotated[
    Text | Refusal | ImageUrl | InputImage | InputAudio | ChatFile | InputFile, Field(discriminator="type")
]


def _kind(content: Any) -> str:
    return "parts" if isinstance(content, list) else "text"


_Content = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[ContentPart], Tag("parts"), Field(fail_fast=True, min_length=1, max_length=bounds.MOST_PARTS)],
    Discriminator(_kind),
]


class Message(_Model):
    """One message, of either API."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer", "tool", "function"]
    content: _Content | None = None
    # Of messages in which a model asks for tools, or gets what came of them.
    tool_calls: list[Any] | None = None
    function_call: Any = None


class _StreamOptions(_Model):
    include_usage: bool | None = None


class _Format(_Model):
    type: str


class _TextOptions(_Model):
    format: _Format | None = None


class _Request(_Model):
    """What both have."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    metadata: Annotated[_Metadata, BeforeValidator(bounds.few), Field(max_length=16)] | None = None
    stream: bool | None = None
    store: bool | None = None
    user: Annotated[str, StringConstraints(max_length=512)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    moderation: Any = None

    def options(self) -> dict[str, str]:
        """The message's metadata that these options are: text as it is, else JSON."""
        given = {TEMPERATURE: self.temperature, MAX_TOKENS: self.longest()}
        given |= {PREFIX + name: getattr(self, name) for name in self._OPTIONS}
        return {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in given.items()
            if value is not None
        }

    def longest(self) -> int | None:
        """The tokens of the answer, at most."""
        raise NotImplementedError

    _OPTIONS: ClassVar[tuple[str, ...]] = ()


class ChatRequest(_Request):
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=bounds.MOST_MESSAGES)]
    stream_options: _StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: str | _Few | None = None
    seed: int | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    logprobs: bool | None = None
    response_format: _Format | None = None
    modalities: _Few | None = None
    audio: Any = None
    functions: list[Any] | None = None
    web_search_options: Any = None

    _OPTIONS: ClassVar = (
        "user",
        "top_p",
        "stop",
        "seed",
        "frequency_penalty",
        "presence_penalty",
        "reasoning_effort",
        "verbosity",
    )

    def longest(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class _Conversation(_Model):
    id: str


class _Reasoning(_Model):
    effort: str | None = None
    summary: str | None = None


def _item_kind(item: Any) -> str:
    kind = item.get("type", "message") if isinstance(item, dict) else "message"
    return "message" if kind == "message" else "other"


class OtherItem(_Model):
    """An item of the input that is no message."""

    type: str


_Item = Annotated[Annotated[Message, Tag("message")] | Annotated[OtherItem, Tag("other")], Discriminator(_item_kind)]
_Input = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[_Item], Tag("parts"), Field(fail_fast=True, min_length=1, max_length=bounds.MOST_MESSAGES)],
    Discriminator(_kind),
]


def _conversation_kind(said: Any) -> str:
    return "id" if isinstance(said, str) else "object"


class ResponseRequest(_Request):
    input: _Input
    instructions: str | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: (
        Annotated[
            Annotated[str, Tag("id")] | Annotated[_Conversation, Tag("object")], Discriminator(_conversation_kind)
        ]
        | None
    ) = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    reasoning: _Reasoning | None = None
    text: _TextOptions | None = None
    prompt: Any = None

    # Told again when the response is retrieved.
    _OPTIONS: ClassVar = ("user", "top_p", "instructions", "background", "previous_response_id")

    def longest(self) -> int | None:
        return self.max_output_tokens

    @property
    def conversation_id(self) -> str:
        """The one that is named, or ""."""
        if self.conversation is None:
            return ""
        return self.conversation if isinstance(self.conversation, str) else self.conversation.id


_AnyRequest = TypeVar("_AnyRequest", ChatRequest, ResponseRequest)


def read(kind: type[_AnyRequest], raw: bytes) -> _AnyRequest:
    """A request out of the body of one.

    Raises:
        InvalidArgument: it is none, or asks for what there is not; names the field.
        MessageTooLarge: it has more values than anything is made of.
    """
    bounds.check_body(raw)
    parsed = _parsed(raw)
    bounds.check(parsed)
    try:
        request = kind.model_validate_json(raw)
    except ValidationError as error:
        raise malformed(error, parsed) from None
    _check(request)
    if isinstance(request, ChatRequest):
        _check_chat(request)
    else:
        _check_response(request)
    return request


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def _check(request: ChatRequest | ResponseRequest) -> None:
    if request.tools:
        raise unsupported("tools", "an agent brings its own tools and calls them itself")
    if request.tool_choice not in (None, "none", "auto"):
        raise unsupported("tool_choice", "an agent brings its own tools and calls them itself")
    if request.moderation is not None:
        raise unsupported("moderation", "nothing here moderates")
    if request.top_logprobs:
        raise unsupported("top_logprobs", "agents tell no probabilities")
    for key in request.metadata or ():
        if is_option(key):
            raise invalid(f"metadata: '{key}' is what an option is called there; choose another name", "metadata")


def _check_chat(request: ChatRequest) -> None:
    if request.functions:
        raise unsupported("functions", "an agent brings its own tools and calls them itself")
    if request.n is not None and request.n > 1:
        raise unsupported("n", "an agent answers once")
    if request.logprobs:
        raise unsupported("logprobs", "agents tell no probabilities")
    if request.response_format is not None and request.response_format.type != "text":
        raise unsupported("response_format", "an agent decides the form of its answers; ask it for one in a message")
    if request.audio is not None or any(kind != "text" for kind in request.modalities or ()):
        raise unsupported("modalities", "agents answer in text here")
    if request.web_search_options is not None:
        raise unsupported("web_search_options", "an agent brings its own tools and calls them itself")


def check_storing(store: bool | None, key: str) -> None:
    """Raises:
    InvalidArgument: what is not stored is to be found again by an idempotency key.
    """
    if store is False and key:
        raise unsupported("store", "an Idempotency-Key finds what was stored; leave out one of both")


def _check_response(request: ResponseRequest) -> None:
    if request.prompt is not None:
        raise unsupported("prompt", "there are no stored prompts")
    if request.text and request.text.format and request.text.format.type != "text":
        raise unsupported("text.format", "an agent decides the form of its answers; ask it for one in the input")
    if request.background and request.store is False:
        raise unsupported("store", "a response in the background is stored until it is fetched")
    if request.conversation is not None and request.previous_response_id is not None:
        raise invalid("name a conversation or a previous_response_id, not both", "previous_response_id")


def is_option(key: str) -> bool:
    """Whether a message's metadata has an option there."""
    return key in (TEMPERATURE, MAX_TOKENS) or key.startswith(PREFIX)
