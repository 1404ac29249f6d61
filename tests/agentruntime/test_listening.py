"""Where the gateway listens, as flags and back."""

import argparse

import pytest
from agentruntime.listening import Listen


def test_what_is_not_said_is_no_flag() -> None:
    assert Listen().argv() == []
    assert Listen("127.0.0.1", 1, 0).argv() == ["--host", "127.0.0.1", "--grpc-port", "1", "--http-port", "0"]


@pytest.mark.parametrize(
    "listen", [Listen(), Listen("::1", 0, 8080, tls=True, tls_cert="/c.pem", anonymous="none", allow_plaintext=True)]
)
def test_its_flags_are_read_as_it_was(listen: Listen) -> None:
    parser = argparse.ArgumentParser()
    Listen.add_flags(parser)
    assert Listen.of(vars(parser.parse_args(listen.argv()))) == listen
