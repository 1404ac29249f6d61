import pytest
from agentruntime import egress
from agentruntime.sections import egress_target

ENTRIES = [
    "api.example.com:443",
    "localhost:8000",
    "api.example.com:80",
    "db.example.com:5432",
    "10.0.0.1:5432",
    "[2001:db8::1]:443",
    "127.0.0.1:8000",
]


def test_each_host_name_has_an_address_of_its_own() -> None:
    ways = egress.ways(ENTRIES)
    assert [(way.entry, way.address, way.port) for way in ways] == [
        ("api.example.com:443", "127.1.0.1", 443),
        ("localhost:8000", "127.0.0.1", 8000),
        ("api.example.com:80", "127.1.0.1", 80),
        ("db.example.com:5432", "127.1.0.3", 5432),
        ("10.0.0.1:5432", "10.0.0.1", 5432),
        ("[2001:db8::1]:443", "2001:db8::1", 443),
    ]
    assert [way.host for way in ways if way.is_literal] == ["10.0.0.1", "2001:db8::1"]


def test_there_is_room_for_more_hosts_than_an_address_has_numbers() -> None:
    assert egress.ways([f"h{number}.example.com:1" for number in range(300)])[-1].address == "127.1.1.44"


def test_names_are_found_in_the_hosts_file() -> None:
    assert egress.hosts_file(ENTRIES) == (
        "127.0.0.1\tlocalhost\n127.1.0.1\tapi.example.com\n127.1.0.3\tdb.example.com\n"
    )
    assert egress.hosts_file([]) == "127.0.0.1\tlocalhost\n"


@pytest.mark.parametrize(
    "entry", ["*", "a", "a:0", "a:65536", "a b:1", "[1.2]:3", "[::::]:1", "::1:80", "a\n:1", "/a:1"]
)
def test_what_is_no_target(entry: str) -> None:
    with pytest.raises(ValueError, match="is not host:port"):
        egress_target(entry)


def test_targets() -> None:
    assert egress_target("api.example.com:443") == ("api.example.com", 443)
    assert egress_target("[::1]:80") == ("::1", 80)
