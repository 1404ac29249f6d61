"""How much JSON a request may be."""

import pytest
from agentruntime.errors import MessageTooLarge

from uapi_gateway.http.json_nodes import MOST_NODES, check_nodes


def test_many_values_are_refused_however_they_lie() -> None:
    check_nodes([0] * (MOST_NODES - 1))
    check_nodes("x" * 1_000_000)
    deep: list[object] = []
    for _ in range(MOST_NODES):
        deep = [deep]
    wide: tuple[object, ...] = ([0] * MOST_NODES, {"a": {str(number): [] for number in range(MOST_NODES)}}, deep)
    for each in wide:
        with pytest.raises(MessageTooLarge):
            check_nodes(each)
