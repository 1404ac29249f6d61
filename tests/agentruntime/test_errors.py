"""The hierarchy of errors."""

from collections.abc import Iterator

from agentruntime import errors, status


def subclasses(cls: type[errors.AgentError]) -> Iterator[type[errors.AgentError]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from subclasses(sub)


def test_every_class_has_a_reason_of_its_own() -> None:
    reasons = [cls.reason for cls in subclasses(errors.AgentError)]
    assert len(reasons) == len(set(reasons))


def test_every_class_has_a_code() -> None:
    for cls in subclasses(errors.AgentError):
        assert any(parent in status.CODES for parent in cls.__mro__[:-3])


def test_an_error_carries_its_details() -> None:
    error = errors.NotFound("no such thing", reason="NO_THING", metadata={"thing": "x"})
    assert (str(error), error.message, error.reason, error.metadata) == (
        "no such thing",
        "no such thing",
        "NO_THING",
        {"thing": "x"},
    )
    assert errors.NotFound("again").reason == "NOT_FOUND"
    assert errors.AgentNotFound("a").metadata == {"agent": "a"}
