"""What the figures of credentials are beside."""

import pytest

from benchmarks.hop import credentials


def test_bars_are_beside_a_gateway_that_knows_neither_keys_nor_providers() -> None:
    cost = {"gateway": 100.0, "gateway with a provider": 105.0, "API key": 110.0, "JWT": 120.0}
    rows = list(credentials("call", cost))
    assert [figure for _, figure, _, bar in rows if bar == 1.15] == pytest.approx([1.1, 1.2])
    assert [figure for _, figure, _, bar in rows if bar is None] == pytest.approx([110 / 105, 120 / 105, 1.05])
