"""Messages of the OpenAI API as the log has them, and what the log has as items of the API."""

import base64
import binascii
import json
from collections.abc import Iterable, Sequence
from typing import Any

from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.conversation import from_value

from uapi_gateway.http.openai import requests
from uapi_gateway.http.openai.refusals import invalid, unsupported
from uapi_gateway.http.openai.requests import Message

_AUDIO = {"wav": "audio/wav", "mp3": "audio/mpeg"}
# What the other end takes an address of a picture for, whose kind nobody has said.
_PICTURE = "image/*"


def history(given: Sequence[Message], param: str) -> tuple[list[proto.ChatMessage], proto.ChatMessage]:
    """What was said before, and the message that is to be handled.

    Raises:
        InvalidArgument: something in it is for models with tools, or the last message is not the caller's.
    """
    said = [message(each, f"{param}[{index}]") for index, each in enumerate(given)]
    last = said.pop()
    if last.role == "assistant":
        raise invalid(f"the last of '{param}' must be what is said to the agent", f"{param}[{len(said)}].role")
    return said, last


def of_input(given: Sequence[Message | requests.OtherItem]) -> list[Message]:
    """The messages that the input of a response is.

    Raises:
        InvalidArgument: there is something else in it.
    """
    for index, item in enumerate(given):
        if isinstance(item, requests.OtherItem):
            what = "an agent brings its own tools and calls them itself; send messages"
            raise unsupported(f"input[{index}].type", what)
    return [item for item in given if isinstance(item, Message)]


def message(given: Message, param: str) -> proto.ChatMessage:
    """One message.

    Raises:
        InvalidArgument: something in it is for models with tools, or cannot be read.
    """
    if given.role in ("tool", "function"):
        raise unsupported(f"{param}.role", "an agent brings its own tools and calls them itself")
    if given.tool_calls or given.function_call:
        raise unsupported(f"{param}.tool_calls", "an agent brings its own tools and calls them itself")
    if given.content is None:
        raise invalid(f"'{param}.content' is missing", f"{param}.content")
    role = "system" if given.role == "developer" else given.role
    if isinstance(given.content, str):
        return proto.ChatMessage(role=role, parts=[proto.Part(text=given.content)])
    parts = [_part(each, f"{param}.content[{index}]") for index, each in enumerate(given.content)]
    return proto.ChatMessage(role=role, parts=parts)


def of_text(text: str, role: str = "user") -> proto.ChatMessage:
    return proto.ChatMessage(role=role, parts=[proto.Part(text=text)])


def _part(given: Any, param: str) -> proto.Part:
    match given:
        case requests.Text(text=text):
            return proto.Part(text=text)
        case requests.Refusal(refusal=text):
            return proto.Part(text=text)
        case requests.ImageUrl(image_url=where):
            return _addressed(where.url, _PICTURE, f"{param}.image_url.url")
        case requests.InputImage(image_url=str() as url):
            return _addressed(url, _PICTURE, f"{param}.image_url")
        case requests.InputAudio(input_audio=audio):
            blob = _decoded(audio.data, f"{param}.input_audio.data")
            return proto.Part(blob=blob, media_type=_AUDIO[audio.format])
        case requests.ChatFile(file=file):
            return _file(file.file_data, file.filename, f"{param}.file.file_data")
        case requests.InputFile(file_url=str() as url, filename=name):
            return proto.Part(url=url, name=name or "")
        case requests.InputFile(file_data=data, filename=name):
            return _file(data, name, f"{param}.file_data")
    raise unsupported(f"{param}.file_id", "there are no stored files; send what is in it")


def _file(data: str | None, name: str | None, param: str) -> proto.Part:
    if data is None:
        raise unsupported(param.replace("file_data", "file_id"), "there are no stored files; send what is in it")
    if data.startswith("data:"):
        part = _addressed(data, "", param)
    else:
        part = proto.Part(blob=_decoded(data, param), media_type="application/octet-stream")
    part.name = name or ""
    return part


def _addressed(url: str, media_type: str, param: str) -> proto.Part:
    """What is at an address, or in it."""
    if not url.startswith("data:"):
        return proto.Part(url=url, media_type=media_type)
    described, comma, data = url.removeprefix("data:").partition(",")
    kind, _, encoding = described.rpartition(";")
    if not comma or encoding != "base64":
        raise invalid(f"'{param}' must be an address, or data:<type>;base64,<data>", param)
    return proto.Part(blob=_decoded(data, param), media_type=kind or "text/plain")


def _decoded(data: str, param: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise invalid(f"'{param}' is not base64", param) from None


def text_of(part: proto.Part) -> str:
    """A piece of a reply as text, which is all that this API has for it: data as JSON, a file as a data: address."""
    match part.WhichOneof("content"):
        case "data":
            return json.dumps(from_value(part.data), ensure_ascii=False)
        case "blob":
            return f"data:{part.media_type};base64,{base64.b64encode(part.blob).decode()}"
        case "url":
            return part.url
    return part.text


def whole_text(parts: Iterable[proto.Part]) -> str:
    return "".join(map(text_of, parts))


def input_item(said: proto.ChatMessage, item_id: str) -> dict[str, Any]:
    """A message that was sent, as an item of a response's input."""
    content = [_input_part(part, said.role) for part in said.parts]
    return {"id": item_id, "type": "message", "role": said.role or "user", "status": "completed", "content": content}


def _input_part(part: proto.Part, role: str) -> dict[str, Any]:
    if role == "assistant":
        return output_text(text_of(part))
    kind = part.WhichOneof("content")
    if kind in ("blob", "url") and part.media_type.startswith("image/"):
        return {"type": "input_image", "detail": "auto", "image_url": text_of(part)}
    if kind == "blob":
        return {"type": "input_file", "filename": part.name, "file_data": text_of(part)}
    if kind == "url":
        return {"type": "input_file", "filename": part.name, "file_url": part.url}
    return {"type": "input_text", "text": text_of(part)}


def output_text(text: str) -> dict[str, Any]:
    """The one piece of content of what an agent said."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
