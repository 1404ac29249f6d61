"""A tar that means ill: refused with a word, in bounded memory and time."""

import gzip
import io
import tarfile
import time
import tracemalloc

import pytest
from agentruntime import errors

from agent_pool.images import tar


def header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, **fields: object) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    for field, value in fields.items():
        setattr(member, field, value)
    return member.tobuf(tarfile.GNU_FORMAT)


def padded(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % 512)


def with_size(block: bytes, size: bytes) -> bytes:
    """A header whose size field has these 12 bytes."""
    changed = block[:124] + size + block[136:148] + b" " * 8 + block[156:]
    return changed[:148] + b"%06o\0 " % sum(changed) + changed[156:]


END = b"\0" * 1024
FILE = header("a", size=3) + padded(b"abc")


def read(archive: bytes) -> dict[str, bytes]:
    return {
        member.name: b"".join(tar.content(of, member)) if member.isreg() else b""
        for of, member in tar.members(io.BytesIO(archive))
    }


def test_a_good_one_is_read() -> None:
    long = "d/" + "n" * 300
    out = io.BytesIO()
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=form) as archive:
            for name in ("a", "b/c", *([] if form == tarfile.USTAR_FORMAT else [long])):
                member = tarfile.TarInfo(name)
                member.size = 600
                archive.addfile(member, io.BytesIO(name[0].encode() * 600))
        assert read(out.getvalue())["b/c"] == b"b" * 600
        # What is not read is passed over.
        assert [member.name for _, member in tar.members(io.BytesIO(out.getvalue()))][:2] == ["a", "b/c"]
        with gzip.open(io.BytesIO(gzip.compress(out.getvalue()))) as unpacked:
            assert len(list(tar.members(unpacked))) >= 2


@pytest.mark.parametrize(
    ("archive", "why"),
    [
        (b"no tar at all" * 100, "not a readable tar"),
        (FILE[:513], "not a readable tar"),
        # Its size leads back to itself, for ever.
        (with_size(header("a"), b"\xff" * 10 + b"\xfc\x00") + END, "no size that a file can have|leads back"),
        (FILE + with_size(header("b"), b"\xff" * 10 + b"\xfe\x00") + END, "no size that a file can have|leads back"),
        # Extensions: of a gigabyte, and one to another for ever.
        (header("././@LongLink", tarfile.GNUTYPE_LONGNAME, 2**30) + b"x" * 2048, "a header is too long"),
        (header("x", tarfile.XHDTYPE, 2**33) + END, "a header is too long"),
        (2000 * (header("././@LongLink", tarfile.GNUTYPE_LONGNAME, 2) + padded(b"a\0")), "not a readable tar"),
        # Holes, and numbers that are none.
        (header("s", tarfile.GNUTYPE_SPARSE, 512) + END, "has holes"),
        (
            header("x", tarfile.XHDTYPE, 30) + padded(b"30 GNU.sparse.map=no,numbers\n\n") + FILE,
            "not a readable tar|has holes",
        ),
    ],
)
def test_a_bad_one_is_refused(archive: bytes, why: str) -> None:
    begun_s = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(errors.InvalidArgument, match=why):
            read(archive)
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()
    assert time.process_time() - begun_s < 5


def test_a_gzip_that_is_none_is_refused() -> None:
    for wrong in (b"", b"\x1f\x8bnothing", gzip.compress(FILE)[:30]):
        with gzip.open(io.BytesIO(wrong)) as unpacked, pytest.raises(errors.InvalidArgument):
            list(tar.members(unpacked))


def test_names_can_be_said() -> None:
    assert tar.shown("a\udcff" + "b" * 500) == "a\\udcff" + "b" * 193
