"""How many values a request's JSON may have: a few bytes of it, as "[],", become kilobytes of objects."""

from typing import Any

from agentruntime.errors import MessageTooLarge

# As protobuf's `Value` each takes about a hundred bytes, and ten times that while it is read.
MOST_NODES = 50_000


def check_nodes(parsed: Any) -> None:
    """Refuses what has too many values to be worked on.

    Args:
        parsed: as `json.loads` gives it, however deep.

    Raises:
        MessageTooLarge: it has more than MOST_NODES objects, arrays, texts, numbers and so on.
    """
    count, left = 0, [parsed]
    while left:
        value = left.pop()
        count += 1
        if isinstance(value, dict):
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
        if count + len(left) > MOST_NODES:
            raise MessageTooLarge(
                f"the body's JSON has more than {MOST_NODES} values, which is all that one may have; send less, or "
                "long data as one text or file"
            )
