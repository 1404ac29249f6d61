"""`agent status`."""

import ipaddress
from typing import Any

from agentruntime import errors, processes, supervisor, units
from agentruntime._proto.uapi.v1 import agent_gateway_pb2 as gateway_pb2
from agentruntime.cli import connection, output, platform
from agentruntime.home import Home

WITHOUT_TLS = "no TLS (`agent up --tls` after `agent down` serves it)"


def command(format_: output.Output = None) -> None:
    """Show the platform's processes and addresses."""
    show(Home.default(), output.wants_json(format_))


def show(home: Home, as_json: bool) -> None:
    """Prints the status.

    Raises:
        Unavailable: no platform runs.
    """
    try:
        with platform.connect() as client:
            response = client.gateway.GetStatus(gateway_pb2.GetStatusRequest())
    except errors.Unavailable as error:
        if error.reason != "NO_ANSWER" or not _supervised(home):
            raise
        # The gateway died, or is only just starting: what the supervisor knows is better than nothing.
        response = gateway_pb2.GetStatusResponse()
        output.note(f"the gateway does not answer; its log is in {home.logs}")
    for problem in response.problems:
        output.note(problem)
    if open_to := plaintext_address(response):
        output.note(f"note: whoever is on the network can read and change what is said at {open_to}: {WITHOUT_TLS}")
    data = output.as_data(response)
    known = {process["name"] for process in data["processes"]}
    data["processes"] += [process for process in _supervised(home) if process["name"] not in known]
    if as_json:
        output.print_json(data)
        return
    rows = [
        [
            process["name"],
            str(process["pid"] or "-"),
            process["version"] or "-",
            units.format_duration(process["uptime_seconds"]),
            ", ".join(process["addresses"]) or "-",
        ]
        for process in data["processes"]
    ]
    output.print_table(["PROCESS", "PID", "VERSION", "UP", "ADDRESSES"], rows)


def plaintext_address(response: gateway_pb2.GetStatusResponse) -> str:
    """Where the platform listens without TLS for other machines; "" if it does not."""
    addresses = (address for process in response.processes for address in process.addresses)
    return next(filter(_is_plaintext, addresses), "")


def _is_plaintext(address: str) -> bool:
    if address.startswith(("https://", "unix:")):
        return False
    host = address.removeprefix("http://").rpartition(":")[0].strip("[]")
    return not ipaddress.ip_address(host).is_loopback


def _supervised(home: Home) -> list[dict[str, Any]]:
    """What the runtime directory itself says, for processes that the gateway does not name."""
    record = supervisor.read_record(home)
    if not record or not platform.is_local(connection.config()) or not supervisor.is_running(home):
        return []
    own = {**record, "name": "supervisor"}
    return [
        {
            "name": process["name"],
            "pid": process["pid"],
            "version": record["version"],
            "addresses": [],
            "uptime_seconds": processes.age_s(process["start_time"]),
        }
        for process in (own, *record["children"])
    ]
