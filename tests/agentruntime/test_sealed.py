"""Values in sealed memory."""

import os

import pytest
from agentruntime import sealed
from hypothesis import given, strategies


@given(strategies.dictionaries(strategies.text(max_size=20), strategies.binary(max_size=200), max_size=5))
def test_what_is_sealed_is_unsealed(values: dict[str, bytes]) -> None:
    assert sealed.unseal(sealed.seal(values)) == values


def test_it_cannot_be_changed_nor_be_found() -> None:
    descriptor = sealed.seal({"openai": b"sk-1"})
    with pytest.raises(PermissionError):
        os.pwrite(descriptor, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    assert not os.get_inheritable(descriptor)
    assert os.fstat(descriptor).st_nlink == 0
    sealed.unseal(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.parametrize("body", [b"", b"{", b'{"a": "x"}'])
def test_what_is_no_such_thing_is_an_error(body: bytes) -> None:
    descriptor = os.memfd_create("other")
    os.write(descriptor, body)
    with pytest.raises(ValueError, match=r"Expecting|base64"):
        sealed.unseal(descriptor)
