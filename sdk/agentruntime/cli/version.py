"""`agent version`."""

import platform

import agentruntime
from agentruntime.cli import output


def command(format_: output.Output = None) -> None:
    """Show the version."""
    if output.wants_json(format_):
        output.print_json({"version": agentruntime.__version__, "python": platform.python_version()})
    else:
        print(f"agentruntime {agentruntime.__version__} (Python {platform.python_version()})")
