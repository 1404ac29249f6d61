"""What one caller is refused fills no disk."""

from uapi_gateway.kernel import floods
from uapi_gateway.kernel.floods import Floods, Rest


def test_of_each_principal_some_are_recorded_and_the_rest_counted() -> None:
    counted = Floods()
    assert list(counted.over(1000.0)) == []
    admitted = [counted.admits("key:ci", "call") for _ in range(floods.EACH + 512)]
    assert sum(admitted) == floods.EACH
    assert all(admitted[: floods.EACH])
    assert counted.admits("local", "call")
    assert list(counted.over(1059.9)) == []
    assert list(counted.over(1060.0)) == [Rest("key:ci", "call", 512)]
    assert counted.admits("key:ci", "call")
    assert list(counted.over(1200.0)) == []


def test_many_principals_are_bounded_too() -> None:
    counted = Floods()
    list(counted.over(0.0, at_once=True))
    admitted = sum(counted.admits(f"agent:a{number}", "egress") for number in range(floods.ALL + 100))
    assert admitted == floods.ALL
    assert list(counted.over(1.0, at_once=True)) == [Rest("*", "egress", 100)]
