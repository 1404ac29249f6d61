"""All targets, the inputs that are kept for each, and others made of those."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

from tests.fuzz import a2a_surface, access, calls, conversations, images, openai_surface, processes, texts
from tests.fuzz.target import Target

DIRECTORY = Path(__file__).resolve().parent / "corpus"
_MODULES = (texts, images, processes, calls, access, openai_surface, a2a_surface, conversations)
TARGETS = {target.name: target for module in _MODULES for target in module.TARGETS}
_LONGEST = 4096
_ODD = (
    b"",
    b"\0",
    b"\xff",
    b"-1",
    b"0",
    b"4294967295",
    b"18446744073709551616",
    b"1e999",
    b"NaN",
    b"\xed\xa0\x80",
    b"%",
)


def kept(target: Target) -> list[Path]:
    """The files with the inputs that are kept for a target."""
    return sorted(path for path in (DIRECTORY / target.name).iterdir() if path.is_file())


def variations(target: Target, seeds: list[bytes], count: int, seed: int = 0) -> Iterator[bytes]:
    """Inputs made out of others: the same ones each time."""
    random = Random(f"{target.name} {seed}")
    for _ in range(count):
        data = bytearray(random.choice(seeds))
        for _ in range(random.randint(1, 4)):
            _change(data, random, seeds, target.tokens)
        yield bytes(data[:_LONGEST])


def _change(data: bytearray, random: Random, seeds: list[bytes], tokens: tuple[bytes, ...]) -> None:
    start = random.randint(0, len(data))
    end = min(len(data), start + random.choice((1, 1, 2, 8, 64)))
    match random.randrange(6):
        case 0:
            data[start:end] = bytes(random.randrange(256) for _ in range(end - start))
        case 1:
            del data[start:end]
        case 2:
            data[start:start] = random.choice((*tokens, *_ODD))
        case 3:
            data[start:end] = random.choice((*tokens, *_ODD))
        case 4:
            other = random.choice(seeds)
            begin = random.randint(0, len(other))
            data[start:end] = other[begin : begin + random.choice((4, 32, 256))]
        case _:
            data[start:start] = bytes(data[start:end]) * random.choice((1, 2, 50))
