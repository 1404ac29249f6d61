"""Numbers that JSON does not have."""

from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from google.protobuf import struct_pb2

from uapi_gateway.http.json_form import fields


def test_null_stands_for_numbers_that_json_does_not_have() -> None:
    data = struct_pb2.Value()
    data.struct_value.fields["a"].number_value = float("nan")
    data.struct_value.fields["b"].list_value.values.add().number_value = float("inf")
    data.struct_value.fields["b"].list_value.values.add().number_value = 2
    parts = [proto.Part(text="x"), proto.Part(data=data)]
    event = proto.Event(completion=proto.ChatMessage(parts=parts, metadata={"k": "v"}))
    said = {"parts": [{"text": "x"}, {"data": {"a": None, "b": [None, 2.0]}}], "metadata": {"k": "v"}}
    assert fields(event) == {"completion": said}
    assert str(data.struct_value.fields["a"].number_value) == "nan"
    call = proto.Event(tool_call=proto.ToolCall(name="t", arguments=data))
    assert fields(call) == {"tool_call": {"name": "t", "arguments": {"a": None, "b": [None, 2.0]}}}
