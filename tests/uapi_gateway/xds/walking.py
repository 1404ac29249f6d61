"""A tree of matchers, walked as Envoy walks it."""

import re
from typing import Any

from envoy.config.rbac.v3 import rbac_pb2
from envoy.type.matcher.v3 import http_inputs_pb2


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
    value = headers.get(_header(single.input))
    if value is None:
        return False
    wanted = single.value_match
    if wanted.WhichOneof("match_pattern") == "contains":
        return wanted.contains in value
    return re.fullmatch(wanted.safe_regex.regex, value) is not None


def _header(given: Any) -> str:
    message = http_inputs_pb2.HttpRequestHeaderMatchInput()
    assert given.typed_config.Unpack(message)
    return str(message.header_name)
