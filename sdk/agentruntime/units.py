"""Sizes, shares, durations and rates as people write them, to numbers and back. Nowhere else is a unit read.

Sizes follow SI and IEC 80000-13: kB, MB, GB are powers of 1000, KiB, MiB, GiB powers of 1024.
"""

import re

from agentruntime.errors import InvalidUnit

_SIZES = {
    "": 1, "B": 1,
    "K": 10**3, "KB": 10**3, "M": 10**6, "MB": 10**6, "G": 10**9, "GB": 10**9, "T": 10**12, "TB": 10**12,
    "KI": 2**10, "KIB": 2**10, "MI": 2**20, "MIB": 2**20, "GI": 2**30, "GIB": 2**30, "TI": 2**40, "TIB": 2**40,
}  # fmt: skip
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_RATES = {"bps": 1, "kbps": 10**3, "mbps": 10**6, "gbps": 10**9}
# 100 years.
_LONGEST_S = 100 * 365.25 * 86400
_LEAST_CALLS_PER_SECOND, _MOST_CALLS_PER_SECOND = 1 / 86400, 1e6
_NUMBER = r"(\d+(?:\.\d+)?|\.\d+)"


def parse_size(text: str) -> int:
    """Bytes of "2GB", "512MiB", "64M" or a bare number of bytes.

    Raises:
        InvalidUnit: the text is not a number with a known unit, or is beyond 2**63 - 1.
    """
    match = re.fullmatch(_NUMBER + r"\s*([A-Za-z]*)", text.strip())
    factor = _SIZES.get(match[2].upper()) if match else None
    if match is None or factor is None:
        raise InvalidUnit(f"'{text}' is not a size; write a number and a unit, like 512MB or 2GiB")
    size = float(match[1]) * factor
    # Also what is too large for a float, which is infinite then.
    if size >= 2**63:
        raise InvalidUnit(f"'{text}' is larger than any machine's memory")
    return round(size)


def parse_cpu(text: str) -> int:
    """Thousandths of a core of "2", "0.5" or "500m".

    Raises:
        InvalidUnit: the text is neither.
    """
    match = re.fullmatch(_NUMBER + r"(m?)", text.strip())
    if match is None or float(match[1]) > 1e6:
        raise InvalidUnit(f"'{text}' is not a CPU share; write cores, like 2 or 0.5, or thousandths, like 500m")
    return round(float(match[1]) * (1 if match[2] else 1000))


def parse_duration(text: str) -> float:
    """Seconds of "30s", "250ms", "5m", "1h30m", "30d" or a bare number of seconds.

    Raises:
        InvalidUnit: the text is none of these, or means more than 100 years.
    """
    text = text.strip()
    if re.fullmatch(_NUMBER, text):
        return _bounded(float(text), text)
    part = _NUMBER + r"(ms|s|m|h|d)"
    if not re.fullmatch(rf"(?:{part})+", text.replace(" ", "")):
        raise InvalidUnit(f"'{text}' is not a duration; write a number and a unit, like 30s, 5m or 250ms")
    parts = re.findall(part, text.replace(" ", ""))
    return _bounded(sum(float(number) * _SECONDS[unit] for number, unit in parts), text)


def _bounded(seconds: float, text: str) -> float:
    if seconds > _LONGEST_S:
        raise InvalidUnit(f"'{text}' is longer than anybody waits")
    return seconds


def parse_rate(text: str) -> int:
    """Bits per second of "100Mbps", "1Gbps"; of 0 without a unit, too.

    Raises:
        InvalidUnit: the text is not a rate.
    """
    if text.strip() == "0":
        return 0
    match = re.fullmatch(_NUMBER + r"\s*([a-z]+)", text.strip().lower())
    factor = _RATES.get(match[2]) if match else None
    if match is None or factor is None:
        raise InvalidUnit(f"'{text}' is not a rate; write a number and a unit, like 100Mbps")
    rate = float(match[1]) * factor
    if rate >= 2**63:
        raise InvalidUnit(f"'{text}' is faster than any network")
    return round(rate)


def parse_calls(text: str) -> float:
    """Calls per second of "10/s", "90/m", "1000/h" or a bare number.

    Raises:
        InvalidUnit: the text is none of these, or is less than one call in a day.
    """
    match = re.fullmatch(_NUMBER + r"(?:\s*/\s*([smh]))?", text.strip())
    rate = float(match[1]) / _SECONDS[match[2] or "s"] if match else 0.0
    if not _LEAST_CALLS_PER_SECOND <= rate <= _MOST_CALLS_PER_SECOND:
        raise InvalidUnit(
            f"'{text}' is not a rate of calls; write calls per second, minute or hour, like 10/s or 90/m"
        )
    return rate


def format_size(size_bytes: float) -> str:
    """ "512MB" of 512000000: three figures at most."""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.4g}TB" if value < 9999.5 else f"{value:.0f}TB"


def format_cpu(millis: int) -> str:
    """ "0.5" of 500."""
    return f"{millis / 1000:g}"


def format_duration(seconds: float) -> str:
    """ "2h 30m" of 9000.0: the two largest units, none below a second."""
    left = int(seconds)
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if left >= size:
            parts.append(f"{left // size}{unit}")
            left %= size
    return " ".join(parts[:2]) or "0s"
