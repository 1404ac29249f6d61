"""`python -m agent_pool`: the pool of one runtime directory, until SIGTERM."""

import argparse
import asyncio
import sys
from pathlib import Path

from agentruntime import errors, log
from agentruntime.home import Home

from agent_pool import server
from agent_pool.settings import PoolSettings


def main() -> int:
    """Reads the settings and serves; 0 after a stop, 1 with one sentence on stderr where it cannot serve."""
    parser = argparse.ArgumentParser(prog="python -m agent_pool", description=__doc__)
    parser.add_argument("--home", type=Path, help="runtime directory; default: $UAPI_HOME or XDG's state directory")
    parser.add_argument("--log-level", choices=log.LEVELS, help="default: $AGENT_POOL_LOG_LEVEL or INFO")
    arguments = parser.parse_args()
    settings = PoolSettings(**({"log_level": arguments.log_level} if arguments.log_level else {}))
    home = Home(arguments.home.resolve()) if arguments.home else Home.default()
    log.configure(settings.log_level, process="pool")
    try:
        asyncio.run(server.serve(home, settings))
    except errors.AgentError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
