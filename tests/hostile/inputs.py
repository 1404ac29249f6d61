"""Hostile inputs by the thousand: what is said on one connection, by family and a seeded chance."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random

from tests.hostile import frames
from tests.hostile.frames import END_HEADERS, END_STREAM, call_headers, frame

ECHO = "/uapi.v1.TextGenerationService/GenerateText"
CALL_AGENT = "/uapi.v1.AgentGateway/CallAgent"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
PATHS = (ECHO, CALL_AGENT, REFLECTION, "/grpc.health.v1.Health/Check", "/uapi.v1.AgentRegistry/ListAgents", "/a.B/C")
AGENT = "echo"
_MIB = 2**20
_LARGEST = 2**31 - 1
# How long one waits whose weapon is to wait.
_HELD_S = 2.0
_PINNED_S = 10.0
_EIGHT = range(1, 17, 2)
_POST = b"POST /health HTTP/1.1\r\nHost: a\r\n"


@dataclass(frozen=True)
class Input:
    """One connection."""

    family: str
    said: bytes
    # "grpc" or "http": the port.
    port: str = "grpc"
    # "read" what comes until it is quiet; "hang up" at once; "half" closes its own side, and reads; "reset".
    then: str = "read"
    # Stays so long when all is said, and says nothing more.
    held_s: float = 0.0
    # What comes then, by stream, as fast as the other side's windows let it.
    bodies: dict[int, bytes] = field(default_factory=dict)
    # The bodies are ended.
    ends: bool = True


def pinning(count: int) -> Iterator[Input]:
    """So many connections, each of which would keep 32 MiB: of requests that do not end, or of answers."""
    writes, reads = frames.start(), frames.start((frames.INITIAL_WINDOW, 0))
    encoded = frames.block(call_headers(ECHO, AGENT))
    opened = b"".join(frames.headers_frames(encoded, stream) for stream in _EIGHT)
    longest = _prompt(bytes(4 * _MIB - 100))
    for number in range(count):
        unread = number % 2 == 0
        body = frames.message(longest) if unread else frames.message(longest)[:-1]
        bodies = dict.fromkeys(_EIGHT, body)
        said = (reads if unread else writes) + opened
        yield Input("pinning", said, then="reset", held_s=_PINNED_S, bodies=bodies, ends=unread)


Family = Callable[[Random], Input]


def inputs(seed: int, count: int) -> Iterator[Input]:
    """So many inputs, the same for the same seed, of all families in turn."""
    chance = Random(seed)
    for number in range(count):
        family = FAMILIES[number % len(FAMILIES)]
        yield family(chance)


def _noise(chance: Random) -> Input:
    start = chance.choice((b"", frames.PREFACE, frames.PREFACE[: chance.randrange(24)], frames.start()))
    return Input("noise", start + chance.randbytes(chance.randrange(1, 4096)), then=_end(chance))


def _other_protocols(chance: Random) -> Input:
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(508)
    get = f"GET /{'x' * chance.randrange(9000)} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    upgrade = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    upgrade += b"HTTP2-Settings: AAMAAABk\r\n\r\n"
    others = (
        hello,
        get,
        upgrade,
        b"\x05\x01\x00",
        b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n",
        b"SSH-2.0-x\r\n",
        b"\x00" * 99,
    )
    return Input("other protocols", chance.choice(others), then=_end(chance))


def _bad_frames(chance: Random) -> Input:
    said = frames.start()
    for _ in range(chance.randrange(1, 12)):
        payload = chance.randbytes(chance.choice((0, 1, 4, 5, 6, 8, 9, chance.randrange(2000))))
        length = chance.choice((None, None, None, len(payload) + 1, 2**14 + 1, 2**24 - 1, 0))
        stream = chance.choice((0, 1, 2, 3, _LARGEST, 2**32 - 1, chance.getrandbits(32)))
        said += frame(
            chance.randrange(chance.choice((10, 10, 256))), chance.getrandbits(8), stream, payload, length=length
        )
    return Input("bad frames", said, then=_end(chance))


def _bad_settings(chance: Random) -> Input:
    values = (
        (2, 2),
        (4, 2**31),
        (5, 1),
        (5, 2**24),
        (1, 2**32 - 1),
        (3, 0),
        (6, 0),
        (4, 0),
        (chance.getrandbits(16), 7),
    )
    said = frames.PREFACE + frames.settings(*chance.choices(values, k=chance.randrange(1, 200)))
    said += chance.choice((b"", frame(frames.SETTINGS, frames.ACK, 0, b"x"), frame(frames.SETTINGS, 0, 1)))
    return Input("bad settings", said + _request(chance))


def _windows(chance: Random) -> Input:
    said = frames.start() + _request(chance, end=False)
    for _ in range(chance.randrange(1, 40)):
        step = chance.choice((0, 1, _LARGEST, 2**32 - 1)).to_bytes(4, "big")
        said += frame(frames.WINDOW_UPDATE, 0, chance.choice((0, 1, 3)), step)
    return Input("windows", said)


def _rapid_resets(chance: Random) -> Input:
    encoded = frames.block(call_headers(chance.choice(PATHS), AGENT))
    said = frames.start()
    for number in range(chance.randrange(100, 1500)):
        stream = 2 * number + 1
        said += frames.headers_frames(encoded, stream) + frame(frames.RST_STREAM, 0, stream, b"\0\0\0\x08")
    return Input("rapid resets", said)


def _continuations(chance: Random) -> Input:
    encoded = frames.block(call_headers(ECHO, AGENT))
    said = frames.start() + frame(frames.HEADERS, END_STREAM * chance.randrange(2), 1, encoded)
    one = (
        frames.block([(f"x-{chance.random()}", "y" * chance.choice((0, 10, 4000)))]) if chance.random() < 0.8 else b""
    )
    said += frame(frames.CONTINUATION, 0, 1, one) * chance.randrange(10, 2000 if len(one) < 100 else 100)
    return Input("continuations", said)


def _floods(chance: Random) -> Input:
    one = chance.choice((
        frame(frames.PING, 0, 0, bytes(8)),
        frames.settings(),
        frame(frames.SETTINGS, frames.ACK),
        frame(frames.PRIORITY, 0, 1, bytes(5)),
        frame(frames.PRIORITY, 0, 3, b"\0\0\0\x03\xff"),
        frame(frames.DATA, 0, 1),
        frame(frames.DATA, frames.PADDED, 1, b"\xff" + bytes(255)),
        frame(frames.GOAWAY, 0, 0, bytes(8)),
        frame(0xFA, 0, 0, bytes(16)),
    ))  # fmt: skip
    return Input("floods", frames.start() + _request(chance, end=False) + one * chance.randrange(500, 20_000))


def _large_headers(chance: Random) -> Input:
    choices: list[frames.Headers] = [
        [("x-large", "y" * chance.randrange(50_000, 300_000))],
        [(f"x-{number}", "y") for number in range(chance.randrange(90, 5000))],
        [("x" * 70_000, "y")],
        [("x-uapi-agent", "a" * 60_000)],
        [("cookie", f"c{number}=v") for number in range(3000)],
    ]  # fmt: skip
    encoded = frames.block(call_headers(chance.choice(PATHS), AGENT, *chance.choice(choices)))
    return Input("large headers", frames.start() + frames.headers_frames(encoded, 1, END_STREAM))


def _hpack(chance: Random) -> Input:
    """One entry of 4 KB in the table, named by a byte each time; or what is no header block."""
    large = b"\x40\x01x\x7f" + (4000 - 127 & 0x7F | 0x80).to_bytes(1, "big") + (4000 - 127 >> 7).to_bytes(1, "big")
    encoded = frames.block(call_headers(ECHO, AGENT)) + large + b"y" * 4000 + b"\xbe" * chance.randrange(100, 12_000)
    if chance.random() < 0.6:
        encoded = chance.choice((
            b"\x80", b"\xff" * 200, b"\x3f\xff\xff\xff\xff\x7f" * 9, b"\x3f\xe1\x1f" * 500, b"\x40\x7f", b"\xff\xff",
            b"\x40\x82\xff\xff\x01y", chance.randbytes(chance.randrange(1, 3000)),
        ))  # fmt: skip
    return Input("HPACK", frames.start() + frames.headers_frames(encoded, 1, END_STREAM))


def _odd_headers(chance: Random) -> Input:
    headers = call_headers(chance.choice(PATHS), AGENT)
    odd: tuple[str | bytes, str | bytes] = chance.choice((
        (":path", "/twice"), (":status", "200"), (":nonsense", "x"), ("Upper", "x"), ("x y", "z"), ("", "empty"),
        ("connection", "close"), ("transfer-encoding", "chunked"), ("te", "gzip"), ("content-length", "-1"),
        ("content-length", "99999999999999999999"), ("x", b"a\r\nb: c"), ("x", b"\0"), (b"\xff\xfe", b"\xc3\x28"),
        ("x-uapi-agent", b"\xc3\x28"), ("x-uapi-principal", "local"), ("x-uapi-cluster", "control"),
        ("x-envoy-retry-on", "5xx"), ("x-envoy-upstream-rq-timeout-ms", "1"), ("grpc-timeout", "soon"),
        ("grpc-timeout", "99999999H"), ("grpc-timeout", "999999999999S"), ("grpc-timeout", "-1S"),
        ("grpc-timeout", "0n"), ("grpc-encoding", "br"), ("grpc-accept-encoding", "," * 5000),
        ("content-type", "text/html"), ("content-type", ""), ("grpc-tags-bin", "!!!"), ("x-bin", "=" * 50),
        ("host", "example.com"), ("authorization", "Bearer " + "x" * 20_000), ("authorization", b"Bearer \xff"),
        ("x-api-key", "uapi_e30.e30."), ("expect", "100-continue"), ("upgrade", "websocket"),
    ))  # fmt: skip
    headers.insert(chance.randrange(len(headers) + 1), odd)
    if chance.random() < 0.4:
        headers.pop(chance.randrange(len(headers)))
    if chance.random() < 0.2:
        headers = [
            (k, chance.choice(("*", "", "//", "/..", "http://x/", "/" + "a/" * 4000))) if k == ":path" else (k, v)
            for k, v in headers
        ]
    said = frames.headers_frames(frames.block(headers), 1) + frames.data_frames(frames.message(_prompt(b"hi")), 1)
    return Input("odd headers", frames.start() + said)


def _bad_messages(chance: Random) -> Input:
    body = _prompt(chance.randbytes(chance.randrange(200)))
    said = chance.choice((
        frames.message(body, length=chance.choice((0, 1, 2**31, 2**32 - 1, 5 * _MIB, len(body) + 1))),
        frames.message(body, flag=chance.randrange(1, 256)),
        frames.message(chance.randbytes(chance.randrange(3000))),
        frames.message(body) * chance.randrange(2, 50),
        chance.randbytes(chance.randrange(1, 5)),
        b"",
        frames.message(b"\x0a\xff\xff\xff\xff\x0f"),
        frames.message(b"\x0b" * 20_000),
        frames.message(frames.field(1, b"\xc3\x28" * 100)),
    ))  # fmt: skip
    encoded = frames.block(call_headers(chance.choice(PATHS), AGENT * chance.randrange(2)))
    return Input("bad messages", frames.start() + frames.headers_frames(encoded, 1) + frames.data_frames(said, 1))


def _bombs(chance: Random) -> Input:
    encoding = chance.choice(("gzip", "deflate"))
    body = frames.message(_bomb(chance.choice((16, 200, 1024, 2048)), encoding), flag=1)
    path = chance.choice(PATHS)
    encoded = frames.block(call_headers(path, AGENT * (path == ECHO), ("grpc-encoding", encoding)))
    return Input("bombs", frames.start() + frames.headers_frames(encoded, 1), bodies={1: body})


def _slow_writers(chance: Random) -> Input:
    """All but the last byte of messages of the longest kind, or of pieces of them."""
    said, bodies = frames.start(), {}
    for number in range(chance.randrange(1, 12)):
        path = chance.choice((ECHO, ECHO, REFLECTION, CALL_AGENT))
        stream = 2 * number + 1
        said += frames.headers_frames(frames.block(call_headers(path, AGENT * (path == ECHO))), stream)
        bodies[stream] = frames.message(bytes(_size(chance, 4 * _MIB - 1)), length=4 * _MIB)
    return Input("slow writers", said, then="reset", held_s=_HELD_S, bodies=bodies, ends=False)


def _slow_readers(chance: Random) -> Input:
    """Answers as long as they may be, and no window for them."""
    said = frames.start((frames.INITIAL_WINDOW, chance.choice((0, 1, 100))))
    encoded = frames.block(call_headers(ECHO, AGENT))
    bodies = {}
    for number in range(chance.randrange(1, 12)):
        stream = 2 * number + 1
        said += frames.headers_frames(encoded, stream)
        bodies[stream] = frames.message(_prompt(b"x" * _size(chance, 4 * _MIB - 100)))
    return Input("slow readers", said, then="reset", held_s=_HELD_S, bodies=bodies)


def _cut_off(chance: Random) -> Input:
    whole = frames.start() + _request(chance)
    return Input("cut off", whole[: chance.randrange(len(whole))], then=chance.choice(("hang up", "half", "reset")))


def _silent(chance: Random) -> Input:
    said = chance.choice((b"", frames.PREFACE[: chance.randrange(24)], frames.start()))
    return Input("silent", said, port=chance.choice(("grpc", "http")), then="reset", held_s=chance.random() * _HELD_S)


def _pages(chance: Random) -> Input:
    said = chance.choice((
        b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * chance.randrange(5000) + b"\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * chance.randrange(200_000) + b"\r\n\r\n",
        b"GET /" + b"a" * chance.randrange(100_000) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        _POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        _POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n" + bytes(999),
        _POST + b"Content-Length: 9999999999\r\n\r\n" + bytes(chance.randrange(200_000)),
        b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n" + bytes(3_000_000),
        b"GET /health HTTP/1.1\r\nHost: evil.example\r\nOrigin: http://evil.example\r\n\r\n",
        b"GET /%2e%2e/%00/..;/health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\xff\xfeGET / HTTP/9.9\r\n\r\n",
        b"GET http://127.0.0.1:1/ HTTP/1.1\r\nHost: a\r\n\r\n" * chance.randrange(1, 300),
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nX:" + b" \r\n \r\n" * 500,
        frames.start() + frames.headers_frames(frames.block(call_headers("/metrics")), 1, END_STREAM),
        chance.randbytes(chance.randrange(1, 5000)),
    ))  # fmt: skip
    return Input("pages", said, port="http", then=_end(chance))


def _slow_pages(chance: Random) -> Input:
    said = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"y" * chance.randrange(100)
    body = b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n" + bytes(
        chance.randrange(100)
    )
    return Input("slow pages", chance.choice((said, body)), port="http", then="reset", held_s=_HELD_S)


FAMILIES: tuple[Family, ...] = (
    _noise, _other_protocols, _bad_frames, _bad_settings, _windows, _rapid_resets, _continuations, _floods,
    _large_headers, _hpack, _odd_headers, _bad_messages, _bombs, _slow_writers, _slow_readers, _cut_off, _silent,
    _pages, _slow_pages, _odd_headers,
)  # fmt: skip


def _end(chance: Random) -> str:
    return chance.choice(("read", "read", "half", "hang up", "reset"))


def _size(chance: Random, longest: int) -> int:
    return chance.choices((10, 30_000, 300_000, longest), (3, 3, 3, 1))[0]


def _prompt(text: bytes) -> bytes:
    return frames.field(1, text)


def _request(chance: Random, *, end: bool = True) -> bytes:
    """A call as it should be."""
    encoded = frames.block(call_headers(chance.choice(PATHS), AGENT))
    flags = 0 if chance.random() < 0.9 else END_HEADERS
    return frames.headers_frames(encoded, 1, flags) + frames.data_frames(frames.message(_prompt(b"hi")), 1, end=end)


@lru_cache
def _bomb(expanded_mib: int, encoding: str) -> bytes:
    return frames.bomb(expanded_mib, gzip=encoding == "gzip")
