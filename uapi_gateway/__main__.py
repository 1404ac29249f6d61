"""`python -m uapi_gateway`: reads flags and settings, and runs the gateway until SIGTERM or SIGINT."""

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from agentruntime import log
from agentruntime.errors import AgentError
from pydantic import ValidationError

from uapi_gateway.server import run
from uapi_gateway.settings import Settings


def read_settings(arguments: list[str]) -> Settings:
    """Settings out of the environment, overridden by flags.

    Raises:
        InvalidArgument: the host is not loopback, and TLS is not asked for.
        pydantic.ValidationError: a value is of the wrong kind.
    """
    parser = argparse.ArgumentParser(prog="uapi_gateway", description="The UAPI gateway: one door to all agents.")
    parser.add_argument("--host", help="address to listen on; any but loopback needs TLS")
    parser.add_argument("--grpc-port", type=int, help="port for gRPC; 0 takes a free one")
    parser.add_argument("--http-port", type=int, help="port for HTTP; 0 takes a free one")
    parser.add_argument("--tls", action="store_true", default=None, help="TLS on both ports")
    parser.add_argument("--tls-cert", type=Path, help="certificate of both ports, in PEM")
    parser.add_argument("--tls-key", type=Path, help="its private key")
    parser.add_argument("--tls-ca", type=Path, help="authority of the certificates that callers show")
    parser.add_argument("--tls-require-client-cert", action="store_true", default=None, help="callers must show one")
    parser.add_argument("--allow-plaintext", action="store_true", default=None, help="no TLS, on any address")
    parser.add_argument("--anonymous", choices=("call", "none"), help="what callers without a credential may")
    parser.add_argument("--log-level", choices=log.LEVELS)
    given = {key: value for key, value in vars(parser.parse_args(arguments)).items() if value is not None}
    settings = Settings(**given)
    settings.check()
    return settings


async def _main(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sign in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sign, stop.set)
    await run(settings, stop)


def main() -> None:
    try:
        settings = read_settings(sys.argv[1:])
    except ValidationError as error:
        first = error.errors()[0]
        sys.exit(f"uapi_gateway: {'.'.join(map(str, first['loc']))}: {first['msg']}")
    except AgentError as error:
        sys.exit(f"uapi_gateway: {error.message}")
    log.configure(settings.log_level, service="gateway")
    try:
        asyncio.run(_main(settings))
    except AgentError as error:
        # One sentence, for whoever started it; the log has the rest.
        sys.exit(f"uapi_gateway: {error.message}")


if __name__ == "__main__":
    main()
