"""Units as people write them."""

import pytest
from agentruntime import units
from agentruntime.errors import InvalidUnit
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("512", 512),
        ("2GB", 2_000_000_000),
        ("2gb", 2_000_000_000),
        ("2 GB", 2_000_000_000),
        ("2GiB", 2 * 2**30),
        ("64M", 64_000_000),
        ("0.5MiB", 2**19),
        (" 1TB ", 10**12),
    ],
)
def test_size(text: str, size_bytes: int) -> None:
    assert units.parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "2 gigs", "GB", "-1GB", "1e9", "1,5GB", "2GB2", "9EB", "99999999TB", "nan"])
def test_size_refused(text: str) -> None:
    with pytest.raises(InvalidUnit):
        units.parse_size(text)


@pytest.mark.parametrize(("text", "millis"), [("2", 2000), ("0.5", 500), ("500m", 500), (".25", 250), ("0", 0)])
def test_cpu(text: str, millis: int) -> None:
    assert units.parse_cpu(text) == millis


@pytest.mark.parametrize("text", ["", "two", "-1", "1 core", "1e3", "50%", "2000000"])
def test_cpu_refused(text: str) -> None:
    with pytest.raises(InvalidUnit):
        units.parse_cpu(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30.0),
        ("250ms", 0.25),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1h 30m", 5400.0),
        ("30d", 2592000.0),
        ("7", 7),
    ],
)
def test_duration(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-5s", "5 parsecs", "1h30", "inf", "nan"])
def test_duration_refused(text: str) -> None:
    with pytest.raises(InvalidUnit):
        units.parse_duration(text)


@pytest.mark.parametrize(("text", "bits_per_s"), [("100Mbps", 10**8), ("1 gbps", 10**9), ("9600bps", 9600), ("0", 0)])
def test_rate(text: str, bits_per_s: int) -> None:
    assert units.parse_rate(text) == bits_per_s


@pytest.mark.parametrize("text", ["100", "100MB", "fast"])
def test_rate_refused(text: str) -> None:
    with pytest.raises(InvalidUnit):
        units.parse_rate(text)


@given(st.integers(min_value=0, max_value=2**62))
def test_a_printed_size_reads_back_within_its_three_figures(size_bytes: int) -> None:
    assert units.parse_size(units.format_size(size_bytes).replace("kB", "KB")) == pytest.approx(size_bytes, rel=0.01)


@given(st.integers(min_value=0, max_value=10**6))
def test_a_printed_cpu_share_reads_back(millis: int) -> None:
    assert units.parse_cpu(units.format_cpu(millis)) == pytest.approx(millis, rel=1e-3)


@given(st.integers(min_value=0, max_value=10**8))
def test_a_printed_duration_reads_back_to_its_second_unit(seconds: int) -> None:
    read = units.parse_duration(units.format_duration(seconds))
    assert read <= seconds < read + max(60.0, seconds * 0.05)


@given(st.text(max_size=30))
def test_whatever_is_written_is_a_number_or_an_invalid_unit(text: str) -> None:
    for parse in (units.parse_size, units.parse_cpu, units.parse_duration, units.parse_rate):
        try:
            assert parse(text) >= 0
        except InvalidUnit:
            continue


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (0.9, "0s"), (59, "59s"), (9000, "2h 30m"), (90061, "1d 1h"), (3601, "1h 1s")]
)
def test_format_duration(seconds: float, text: str) -> None:
    assert units.format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(0, "0B"), (512_000_000, "512MB"), (1500, "1.5kB"), (999_600, "1MB"), (2e12, "2TB")]
)
def test_format_size(size_bytes: float, text: str) -> None:
    assert units.format_size(size_bytes) == text


@pytest.mark.parametrize(
    ("text", "rate"), [("10/s", 10.0), ("90/m", 1.5), (" 36 / h ", 0.01), ("0.5/s", 0.5), ("7", 7.0)]
)
def test_calls_per_second(text: str, rate: float) -> None:
    assert units.parse_calls(text) == pytest.approx(rate)


@pytest.mark.parametrize("text", ["", "0/s", "-1/s", "1/d", "10/s/s", "1e9/s", "9999999/s", "ten/s"])
def test_no_calls_per_second(text: str) -> None:
    with pytest.raises(InvalidUnit, match="rate of calls"):
        units.parse_calls(text)
