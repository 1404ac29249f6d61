"""`make chaos` in a few seconds: everything is killed once under load, and no call is lost that must not be."""

import pytest

from benchmarks.chaos import course, stage

pytestmark = [pytest.mark.integration, pytest.mark.root]


async def test_no_call_is_lost() -> None:
    grid, bars = await course.measure(stage.SHORT, stage.PHASES)
    assert [row.what for row in bars.rows if row.missed] == [], grid.render()
