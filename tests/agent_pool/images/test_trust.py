"""The policy: whose signature counts, from now on, and what is wrong with the keys where something is."""

from pathlib import Path

import pytest
from agentruntime import errors
from agentruntime.signing import Claim, PrivateKey

from agent_pool.images.trust import Trust

KEY = PrivateKey.generate()
DIGEST = "sha256:" + "ab" * 32
SIGNED = [KEY.sign(Claim("my-agent", DIGEST))]


def test_a_key_counts_from_when_it_is_there_until_it_is_not(tmp_path: Path) -> None:
    trust = Trust(tmp_path, required=True)
    with pytest.raises(errors.FailedPrecondition, match="holds none"):
        trust.check()
    (tmp_path / "release.pub").write_bytes(KEY.public_pem())
    (tmp_path / "notes.txt").write_text("not a key")
    trust.check()
    assert trust.signed_by("my-agent:1", DIGEST, SIGNED) == "release"
    assert Trust(tmp_path / "release.pub").signed_by("my-agent:2", DIGEST, SIGNED) == "release"
    (tmp_path / "release.pub").rename(tmp_path / "release.old")
    with pytest.raises(errors.ImageNotTrusted, match="by none of the trusted keys"):
        trust.signed_by("my-agent:1", DIGEST, SIGNED)


def test_keys_that_cannot_be_read_trust_nothing(tmp_path: Path) -> None:
    Trust().check()
    with pytest.raises(errors.ImageNotTrusted):
        Trust().signed_by("my-agent:1", DIGEST, SIGNED)
    with pytest.raises(errors.FailedPrecondition, match="there are none"):
        Trust(required=True).check()
    with pytest.raises(errors.FailedPrecondition, match="no such file"):
        Trust(tmp_path / "none", required=True).check()
    (tmp_path / "a.pub").write_bytes(KEY.public_pem())
    (tmp_path / "b.pem").write_bytes(KEY.pem())
    for act in (Trust(tmp_path).check, lambda: Trust(tmp_path).signed_by("my-agent:1", DIGEST, SIGNED)):
        with pytest.raises(errors.FailedPrecondition, match=r"b\.pem holds a private key"):
            act()
