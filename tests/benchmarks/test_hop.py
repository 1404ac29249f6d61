"""What the figures of credentials are beside."""

import pytest

from benchmarks.hop import credentials


def test_credentials_have_a_bar_at_the_same_gateway_and_beside_one_that_knows_none_of_them() -> None:
    cost = {"gateway": 100.0, "gateway with a provider": 105.0, "API key": 110.0, "JWT": 120.0}
    rows = list(credentials("call", cost))
    assert [figure for _, figure, _, bar in rows if bar == 1.15] == pytest.approx([1.1, 110 / 105, 1.2, 120 / 105])
    assert [figure for _, figure, _, bar in rows if bar is None] == pytest.approx([1.05])
