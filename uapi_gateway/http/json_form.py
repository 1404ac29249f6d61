"""Messages of protobuf as JSON, also those that hold numbers which JSON does not have: null stands for these."""

import math
from typing import Any

from google.protobuf import json_format, struct_pb2
from google.protobuf.message import Message


def fields(message: Message) -> dict[str, Any]:
    """A message by its fields' names."""
    try:
        return json_format.MessageToDict(message, preserving_proto_field_name=True)
    except (ValueError, json_format.SerializeToJsonError):
        said = type(message)()
        said.CopyFrom(message)
        _make_finite(said)
        return json_format.MessageToDict(said, preserving_proto_field_name=True)


def _make_finite(message: Message) -> None:
    if isinstance(message, struct_pb2.Value):
        _make_value_finite(message)
        return
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for each in value if field.is_repeated else (value,):
            _make_finite(each)


def _make_value_finite(value: struct_pb2.Value) -> None:
    match value.WhichOneof("kind"):
        case "number_value" if not math.isfinite(value.number_value):
            value.null_value = struct_pb2.NULL_VALUE
        case "struct_value":
            for each in value.struct_value.fields.values():
                _make_value_finite(each)
        case "list_value":
            for each in value.list_value.values:
                _make_value_finite(each)
