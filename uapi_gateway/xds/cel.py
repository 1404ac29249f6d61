"""Expressions of CEL as Envoy's matchers take them: as syntax trees, for what no header or claim alone can tell."""

from collections.abc import Iterator
from itertools import count
from typing import Any

from google.protobuf import any_pb2, json_format
from xds.type.matcher.v3 import cel_pb2, http_inputs_pb2, matcher_pb2

Node = dict[str, Any]


def metadata(*path: str) -> Node:
    """What a filter has left there in the call's metadata."""
    found = _attribute("metadata", "filter_metadata")
    for key in path:
        found = _entry(found, key)
    return found


def header(name: str) -> Node:
    """Of the request."""
    return _entry(_attribute("request", "headers"), name)


def is_in(one: Node, many: Node) -> Node:
    return _call("@in", one, many)


def equal(one: Node, other: Node) -> Node:
    return _call("_==_", one, other)


def predicate(tree: Node) -> Any:
    """Whether an expression is true; one that cannot be evaluated, as of a header that is not there, is not."""
    matcher = {"expr_match": {"cel_expr_parsed": {"expr": _numbered(tree, count(1))}}}
    single = matcher_pb2.Matcher.MatcherList.Predicate()
    return matched(
        single,
        http_inputs_pb2.HttpAttributesCelMatchInput(),
        json_format.ParseDict(matcher, cel_pb2.CelMatcher()),
    )


def matched(found: Any, where: Any, how: Any) -> Any:
    """A predicate of what is looked at and of a matcher of Envoy's own."""
    for field, message in ((found.single_predicate.input, where), (found.single_predicate.custom_match, how)):
        packed = any_pb2.Any()
        packed.Pack(message, deterministic=True)
        field.name = message.DESCRIPTOR.full_name
        field.typed_config.CopyFrom(packed)
    return found


def _call(function: str, *arguments: Node) -> Node:
    return {"call_expr": {"function": function, "args": list(arguments)}}


def _entry(of: Node, key: str) -> Node:
    return _call("_[_]", of, {"const_expr": {"string_value": key}})


def _attribute(name: str, member: str) -> Node:
    return {"select_expr": {"operand": {"ident_expr": {"name": name}}, "field": member}}


def _numbered(node: Node, numbers: Iterator[int]) -> Node:
    """With an id for each node, as CEL wants them."""
    found: Node = {"id": str(next(numbers))}
    for kind, content in node.items():
        inner = dict(content)
        if "args" in inner:
            inner["args"] = [_numbered(each, numbers) for each in inner["args"]]
        if "operand" in inner:
            inner["operand"] = _numbered(inner["operand"], numbers)
        found[kind] = inner
    return found
