"""Where conversations are cut."""

import pytest

from uapi_gateway.conversations.retention import cut_at, possible_cuts


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


@pytest.mark.parametrize(
    ("events", "bytes_", "cut"),
    [(1, 0, 3), (3, 0, 3), (4, 0, 6), (6, 0, 6), (100, 0, 9), (0, 1, 3), (0, 30, 3), (0, 31, 6), (2, 61, 9)],
)
def test_as_little_is_cut_as_does_it(events: int, bytes_: int, cut: int) -> None:
    assert cut_at([3, 6, 9], dict.fromkeys(range(1, 10), 10), events, bytes_) == cut
