"""Which images the pool runs: all, or only such as a key signed that it trusts."""

import errno
from collections.abc import Sequence
from pathlib import Path

from agentruntime import errors
from agentruntime.names import ImageReference
from agentruntime.signing import Claim, PublicKey, Signature, public_keys, signer

# Of a directory of keys.
_SUFFIXES = (".pub", ".pem")


class Trust:
    """The policy of one pool.

    Args:
        keys: a file of public keys, or a directory with such files (*.pub, *.pem); None for no keys. It is read
            whenever it matters, so that a key that is put there or taken away counts from then on.
        required: whether images that no trusted key signed are refused.
    """

    def __init__(self, keys: Path | None = None, *, required: bool = False) -> None:
        self._place = keys
        self.required = required

    def check(self) -> None:
        """Checks that the policy can be carried out.

        Raises:
            FailedPrecondition: it demands signatures and has no keys, or a key cannot be read.
        """
        if self.keys() or not self.required:
            return
        where = f"{self._place} holds none" if self._place else "there are none"
        raise errors.FailedPrecondition(
            f"AGENT_POOL_REQUIRE_SIGNED needs public keys, and {where}; "
            "put the .pub files of `agent keypair` into the directory that AGENT_POOL_TRUSTED_KEYS names"
        )

    def keys(self) -> list[PublicKey]:
        """The trusted keys, as they are now, each named after its file.

        Raises:
            FailedPrecondition: they cannot be read.
        """
        if self._place is None:
            return []
        try:
            return [
                key
                for path in _key_files(self._place)
                for key in _renamed(public_keys(path.read_bytes(), str(path)), path)
            ]
        except OSError as error:
            raise errors.FailedPrecondition(
                f"the trusted keys in {self._place} cannot be read ({error.strerror}); see AGENT_POOL_TRUSTED_KEYS"
            ) from None
        except errors.InvalidArgument as error:
            raise errors.FailedPrecondition(f"AGENT_POOL_TRUSTED_KEYS: {error.message}") from None

    def signed_by(self, reference: str, digest: str, signatures: Sequence[Signature]) -> str:
        """The name of the trusted key that signed an image.

        Args:
            reference: what it is called; the tag does not matter.
            digest: of its manifest.
            signatures: those beside it.

        Raises:
            ImageNotTrusted: none did; says why.
            FailedPrecondition: the keys cannot be read.
        """
        return signer(Claim(ImageReference.parse(reference).name, digest), signatures, self.keys())


def _key_files(place: Path) -> list[Path]:
    if place.is_dir():
        return sorted(path for path in place.iterdir() if path.suffix in _SUFFIXES)
    if not place.exists():
        raise FileNotFoundError(errno.ENOENT, "there is no such file or directory")
    return [place]


def _renamed(keys: list[PublicKey], path: Path) -> list[PublicKey]:
    for key in keys:
        key.name = path.stem
    return keys
