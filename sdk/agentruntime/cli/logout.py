"""`agent logout`."""

from agentruntime import errors
from agentruntime.cli import connection, output
from agentruntime.cli.login import login_file


def command(format_: output.Output = None) -> None:
    """Forget a login.

    That to the endpoint which `--endpoint` or UAPI_ENDPOINT names. The token that was issued ends by itself.
    """
    file = login_file(connection.config())
    if not file.exists():
        raise errors.NotFound(f"nobody is logged in to {file.endpoint}")
    file.forget()
    if output.wants_json(format_):
        output.print_json({"endpoint": file.endpoint})
    else:
        print(f"Logged out of {file.endpoint}.")
