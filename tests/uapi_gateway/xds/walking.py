"""A tree of matchers, walked as Envoy walks it."""

import re
from typing import Any

from envoy.config.rbac.v3 import rbac_pb2
from envoy.type.matcher.v3 import http_inputs_pb2
from xds.type.matcher.v3 import cel_pb2


def walk(matcher: Any, headers: dict[str, str]) -> bool:
    """Whether the rules let a call with these headers pass; what nothing matches is refused."""
    found = _found(matcher, headers)
    if found is None:
        return False
    if found.HasField("matcher"):
        return walk(found.matcher, headers)
    action = rbac_pb2.Action()
    assert found.action.typed_config.Unpack(action)
    return bool(action.action == rbac_pb2.RBAC.ALLOW)


def _found(matcher: Any, headers: dict[str, str]) -> Any:
    for each in matcher.matcher_list.matchers:
        if _holds(each.predicate, headers):
            return each.on_match
    if matcher.HasField("matcher_tree"):
        value = headers.get(_header(matcher.matcher_tree.input))
        known = matcher.matcher_tree.exact_match_map.map
        if value is not None and value in known:
            return known[value]
    return matcher.on_no_match if matcher.HasField("on_no_match") else None


def _holds(predicate: Any, headers: dict[str, str]) -> bool:
    single = predicate.single_predicate
    if single.HasField("custom_match"):
        return _equal(single.custom_match, headers)
    value = headers.get(_header(single.input))
    if value is None:
        return False
    wanted = single.value_match
    if wanted.WhichOneof("match_pattern") == "contains":
        return wanted.contains in value
    return re.fullmatch(wanted.safe_regex.regex, value) is not None


def _equal(given: Any, headers: dict[str, str]) -> bool:
    """Of an expression that compares two headers, the only kind that is met here."""
    matcher = cel_pb2.CelMatcher()
    assert given.typed_config.Unpack(matcher)
    call = matcher.expr_match.cel_expr_parsed.expr.call_expr
    assert call.function == "_==_"
    names = [each.call_expr.args[1].const_expr.string_value for each in call.args]
    return len(names) == 2 and names[0] in headers and headers[names[0]] == headers.get(names[1])


def _header(given: Any) -> str:
    message = http_inputs_pb2.HttpRequestHeaderMatchInput()
    assert given.typed_config.Unpack(message)
    return str(message.header_name)
