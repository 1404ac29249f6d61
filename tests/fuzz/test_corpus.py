"""Every input that was kept, and some made of them: each property holds, and none takes long."""

import tempfile
import time

import pytest

from tests.fuzz import corpus
from tests.fuzz.target import LONGEST_S, SCRATCH

# Of each target; together they take some seconds. `make fuzz` makes others, for minutes.
_VARIATIONS = 150


@pytest.mark.parametrize("name", corpus.TARGETS)
def test_properties_hold(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", SCRATCH)
    target = corpus.TARGETS[name]
    files = corpus.kept(target)
    assert files, f"there is no input for {name} in {corpus.DIRECTORY}"
    seeds = [path.read_bytes() for path in files]
    made = ((f"variation {n}", data) for n, data in enumerate(corpus.variations(target, seeds, _VARIATIONS)))
    for where, data in (*zip((path.name for path in files), seeds, strict=True), *made):
        begun_s = time.process_time()
        try:
            target.check(data)
        except Exception as error:
            raise AssertionError(f"{name}, {where}: {data[:2000]!r}") from error
        took_s = time.process_time() - begun_s
        assert took_s < LONGEST_S, f"{name}, {where}: {took_s:.1f} s for {data[:2000]!r}"


def test_what_is_kept_is_of_a_target() -> None:
    assert {path.name for path in corpus.DIRECTORY.iterdir() if path.is_dir()} == set(corpus.TARGETS)
