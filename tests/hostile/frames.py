"""HTTP/2 frames and gRPC messages as bytes, well formed or not: nothing here checks what it writes.

RFC 9113, section 6 has the frames.
"""

import struct
import zlib
from collections.abc import Iterable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITIZED = 0x1, 0x1, 0x4, 0x8, 0x20
INITIAL_WINDOW = 4
LARGEST_FRAME_BYTES = 2**14
Headers = list[tuple[str | bytes, str | bytes]]


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"", *, length: int | None = None) -> bytes:
    """A frame; `length` is what it says of itself, if that is to be wrong."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size & 0xFFFFFF)[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(*values: tuple[int, int]) -> bytes:
    return frame(SETTINGS, payload=b"".join(struct.pack(">HI", key, value) for key, value in values))


def start(*values: tuple[int, int]) -> bytes:
    """What a connection begins with."""
    return PREFACE + settings(*values)


def call_headers(path: str, agent: str = "", *more: tuple[str | bytes, str | bytes]) -> Headers:
    """The headers of a call as a gRPC client sends them."""
    named: Headers = [("x-uapi-agent", agent)] if agent else []
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *named,
        *more,
    ]


def block(headers: Iterable[tuple[str | bytes, str | bytes]]) -> bytes:
    """The headers encoded as literals that are never indexed (RFC 7541, section 6.2.3)."""
    return b"".join(b"\x10" + _literal(_bytes(key)) + _literal(_bytes(value)) for key, value in headers)


def _literal(text: bytes) -> bytes:
    """A string without Huffman's code; its length in 7 bits, and what is left in as many bytes as it takes."""
    most = 0x7F
    if len(text) < most:
        return bytes((len(text),)) + text
    return bytes((most,)) + _varint(len(text) - most) + text


def _varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes((number & 0x7F | 0x80,))
        number >>= 7
    return out + bytes((number,))


def headers_frames(encoded: bytes, stream: int, flags: int = 0) -> bytes:
    """A header block in as many frames as it needs."""
    pieces = [encoded[at : at + LARGEST_FRAME_BYTES] for at in range(0, len(encoded), LARGEST_FRAME_BYTES)] or [b""]
    out = frame(HEADERS, flags | (END_HEADERS if len(pieces) == 1 else 0), stream, pieces[0])
    for number, piece in enumerate(pieces[1:], 2):
        out += frame(CONTINUATION, END_HEADERS if number == len(pieces) else 0, stream, piece)
    return out


def data_frames(body: bytes, stream: int, *, end: bool = True) -> bytes:
    pieces = [body[at : at + LARGEST_FRAME_BYTES] for at in range(0, len(body), LARGEST_FRAME_BYTES)] or [b""]
    last = len(pieces) - 1
    return b"".join(
        frame(DATA, END_STREAM if end and number == last else 0, stream, piece) for number, piece in enumerate(pieces)
    )


def message(body: bytes, *, flag: int = 0, length: int | None = None) -> bytes:
    """A gRPC message; `length` is what its prefix says, if that is to be wrong."""
    return struct.pack(">BI", flag, (len(body) if length is None else length) & 0xFFFFFFFF) + body


def field(number: int, value: bytes) -> bytes:
    """A protobuf field of bytes."""
    return bytes((number << 3 | 2,)) + _varint(len(value)) + value


def bomb(expanded_mib: int, *, gzip: bool) -> bytes:
    """Zeros, compressed a thousandfold, with the right checksum."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros = bytes(2**20)
    # Each block stands for itself, so one does for all.
    block_of_zeros = squeeze.compress(zeros) + squeeze.flush(zlib.Z_FULL_FLUSH)
    check = 0 if gzip else 1
    for _ in range(expanded_mib):
        check = zlib.crc32(zeros, check) if gzip else zlib.adler32(zeros, check)
    body = block_of_zeros * expanded_mib + b"\x03\x00"
    if gzip:
        return (
            b"\x1f\x8b\x08" + bytes(6) + b"\xff" + body + struct.pack("<II", check, expanded_mib << 20 & 0xFFFFFFFF)
        )
    return b"\x78\xda" + body + struct.pack(">I", check)


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
