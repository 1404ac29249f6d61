"""Where conversations are cut."""

import pytest

from uapi_gateway.conversations.retention import freeing, possible_cuts


@pytest.mark.parametrize(
    ("spans", "cuts"),
    [
        ([], []),
        ([(1, 3)], []),  # the newest stays
        ([(1, 3), (4, 6), (7, 9)], [3, 6]),
        ([(1, 3), (5, 6)], [3]),  # what lies between goes with what follows
        ([(1, 5), (3, 8), (9, 10)], [8]),  # one waited while the other ran
        ([(1, 0), (2, 3), (4, 5)], []),  # the oldest has not ended
        ([(1, 2), (3, 0), (4, 5), (6, 7)], [2]),
    ],
)
def test_a_cut_is_where_no_message_goes_on(spans: list[tuple[int, int]], cuts: list[int]) -> None:
    assert possible_cuts(spans) == cuts


@pytest.mark.parametrize(("excess", "number"), [(1, 1), (10, 1), (11, 2), (30, 3), (31, 4), (1000, 4)])
def test_no_more_is_read_than_is_too_much(excess: int, number: int) -> None:
    sizes = iter(dict.fromkeys(range(1, 5), 10).items())
    assert freeing(sizes, excess) == number
    assert [left for left, _ in sizes] == list(range(number + 1, 5))
