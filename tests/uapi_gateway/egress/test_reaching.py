import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from uapi_gateway.egress.reaching import Closed, Reaching, Unreachable


@pytest_asyncio.fixture
async def reaching() -> AsyncIterator[Reaching]:
    made = Reaching()
    yield made
    made.close()


async def test_it_connects_to_this_machine_only_where_that_is_open(reaching: Reaching) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for host in ("localhost", "127.0.0.1", "0.0.0.0"):
            with pytest.raises(Closed, match=f"^{host} is "):
                await reaching.connect(host, port, anywhere=False)
        with await reaching.connect("localhost", port, anywhere=True) as connection:
            assert connection.getpeername() == ("127.0.0.1", port)
            assert not connection.getblocking()


async def test_every_address_of_a_name_is_tried(reaching: Reaching) -> None:
    # localhost is ::1 and 127.0.0.1 where /etc/hosts says so; nobody listens on ::1.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        (await reaching.connect("localhost", listener.getsockname()[1], anywhere=True)).close()


async def test_it_says_why_there_is_nothing(reaching: Reaching) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Unreachable, match="refused"):
        await reaching.connect("127.0.0.1", port, anywhere=True)
    for name in ("nowhere.invalid", "a" * 64 + ".invalid"):
        with pytest.raises(Unreachable, match="name is not known"):
            await reaching.connect(name, 80, anywhere=True)
