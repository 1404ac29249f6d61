"""A task's id: its conversation and its message in one name, so that nobody has to remember what belongs together.

Both are their callers' to choose, of any printable ASCII; a task's id stands in URLs. Letters, digits, "-" and "_"
stay as they are, anything else is "~" with two hexadecimal digits, and "." is between the two.
"""

import re

_PLAIN = "A-Za-z0-9_-"
_PART = f"(?:[{_PLAIN}]|~[0-9a-f]{{2}})+"
# As conversation_service.proto has it.
_ID = re.compile("[ -~]{1,200}")
_TASK_ID = re.compile(rf"({_PART})\.({_PART})")
_OTHER = re.compile(f"[^{_PLAIN}]")
_ESCAPED = re.compile("~([0-9a-f]{2})")


def task_id(conversation_id: str, message_id: str) -> str:
    """The id of the task that a message is."""
    return f"{_escaped(conversation_id)}.{_escaped(message_id)}"


def parse(text: str) -> tuple[str, str] | None:
    """The conversation and the message of a task; None for what is no task's id."""
    found = _TASK_ID.fullmatch(text)
    if found is None:
        return None
    conversation_id, message_id = (_ESCAPED.sub(_character, part) for part in found.groups())
    if not (_ID.fullmatch(conversation_id) and _ID.fullmatch(message_id)):
        return None
    # What could be written in two ways would be two tasks.
    if task_id(conversation_id, message_id) != text:
        return None
    return conversation_id, message_id


def _escaped(text: str) -> str:
    return _OTHER.sub(lambda found: f"~{ord(found[0]):02x}", text)


def _character(found: re.Match[str]) -> str:
    return chr(int(found[1], 16))
