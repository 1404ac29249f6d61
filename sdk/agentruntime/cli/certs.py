"""`agent certs`: a certificate authority of one's own, for one platform; what callers with certificates may do."""

import datetime as dt
from pathlib import Path
from typing import Annotated, Literal

import typer

from agentruntime import authority, certificates, errors, names
from agentruntime._proto.uapi.v1 import access_pb2, access_pb2_grpc
from agentruntime.authority import Wanted
from agentruntime.cli import keys, output, platform
from agentruntime.client.sync import Client
from agentruntime.home import Home


def init(
    host: Annotated[
        list[str] | None,
        typer.Option("--host", metavar="NAME", help="Callers connect by this name, too. May be repeated."),
    ] = None,
    pool_host: Annotated[
        list[str] | None,
        typer.Option("--pool-host", metavar="NAME", help="A pool on another machine has this name. May be repeated."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Make all anew, the authority too: callers need its new certificate.")
    ] = False,
    format_: output.Output = None,
) -> None:
    """Make a certificate authority, and certificates of the gateway and the pool.

    Where there are some already, the authority stays, and a certificate is made anew if its hosts are others or it
    ends soon; a platform that runs takes it up at once, and no connection is dropped.
    """
    home = Home.default()
    home.create()
    made = _initialize(home.certs, {"server": host, "pool": pool_host}, dt.datetime.now(dt.UTC), force=force)
    _say(home.certs, made, format_)
    if not output.wants_json(format_):
        print(f"Start the platform with:  agent up --tls\nCallers trust:            {home.certs / 'ca.pem'}")


def client(
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of a program: spiffe://agentruntime/client/NAME.")
    ] = None,
    agent: Annotated[
        str | None, typer.Option(metavar="AGENT", help="Of an agent: spiffe://agentruntime/agent/AGENT.")
    ] = None,
    host: Annotated[
        list[str] | None,
        typer.Option("--host", metavar="NAME", help="It is called by this name, too. May be repeated."),
    ] = None,
    format_: output.Output = None,
) -> None:
    """Make a certificate by which a program or an agent is known to the gateway."""
    if (name is None) == (agent is None):
        raise errors.InvalidArgument("give either --name NAME for a program or --agent AGENT for an agent")
    kind, whose = ("client", name) if name is not None else ("agent", agent)
    identity = names.check_agent_name(whose or "")
    hosts = host or []
    wanted = Wanted(f"{kind}-{identity}", hosts, [f"spiffe://agentruntime/{kind}/{identity}"], bool(hosts))
    directory = Home.default().certs
    if not authority.authority_file(directory).exists():
        raise errors.FailedPrecondition(f"there is no authority in {directory}; make one with `agent certs init`")
    made = authority.issue(directory, wanted, dt.datetime.now(dt.UTC))
    _say(directory, [made], format_)
    if name is not None:
        output.note(f"what it may do:  agent certs grant {wanted.uris[0]} --agents AGENT[,AGENT]")


def grant(
    uri: Annotated[
        str, typer.Argument(metavar="URI", help="The certificate's URI name; '*' is all that have no grant.")
    ],
    *,
    agents: Annotated[str, typer.Option(metavar="AGENT[,AGENT]", help="The agents that it is for; '*' is all.")] = "",
    role: Annotated[
        Literal["call", "operate", "administer", "none"],
        typer.Option(help="call them; or run, stop and scale them, too; or, for '*', do everything; or nothing."),
    ] = "call",
    format_: output.Output = None,
) -> None:
    """Say what whoever shows a certificate of that name may do. It counts from the next call."""
    named = [agent.strip() for agent in agents.split(",") if agent.strip()]
    if (role == "none") == bool(named):
        raise errors.InvalidArgument(
            "--role none takes no --agents" if named else "say by --agents which agents it is for, or --role none"
        )
    wanted = access_pb2.SetCertificateGrantRequest(uri=uri, agents=named)
    if role != "none":
        wanted.role = keys.ROLES[role]
    with platform.connect() as client:
        _show(_stub(client).SetCertificateGrant(wanted).grant, format_)


def grants(format_: output.Output = None) -> None:
    """List what callers with certificates may do."""
    with platform.connect() as client:
        found = _stub(client).ListCertificateGrants(access_pb2.ListCertificateGrantsRequest()).grants
    if output.wants_json(format_):
        output.print_json([output.as_data(each) for each in found])
        return
    rows = [
        [
            each.uri,
            keys.ROLE_NAMES.get(each.role, "none"),
            ",".join(each.agents) or "-",
            keys.time(each, "granted_at"),
        ]
        for each in found
    ]
    output.print_table(["URI", "ROLE", "AGENTS", "GRANTED"], rows)


def ungrant(
    uri: Annotated[str, typer.Argument(metavar="URI", help="As `agent certs grants` shows it.")],
    format_: output.Output = None,
) -> None:
    """Take a grant back: the certificate then may do what '*' may, which can be more. --role none locks one out."""
    with platform.connect() as client:
        answer = _stub(client).RemoveCertificateGrant(access_pb2.RemoveCertificateGrantRequest(uri=uri))
    if not output.wants_json(format_):
        print(f"{uri} has no grant of its own")
    _show(answer.now, format_)


def _show(said: access_pb2.CertificateGrant, format_: output.Format | None) -> None:
    if output.wants_json(format_):
        output.print_json(output.as_data(said))
        return
    whose = "a certificate without a grant" if said.uri == "*" else said.uri
    agents = "all agents" if list(said.agents) == ["*"] else ", ".join(said.agents)
    may = f"has the role {keys.ROLE_NAMES.get(said.role, '?')} for {agents}" if said.agents else "may do nothing"
    print(f"{whose} {may}")


def _stub(client: Client) -> access_pb2_grpc.AccessServiceStub:
    return client.stub(access_pb2_grpc.AccessServiceStub, agent="")


def _initialize(
    directory: Path, given: dict[str, list[str] | None], now: dt.datetime, *, force: bool
) -> list[certificates.Files]:
    made = []
    # Each has its own: whoever holds the pool's key on another machine must not pass for the gateway.
    hosts = {
        name: list(dict.fromkeys([*authority.LOCAL_HOSTS, *(_hosts(directory, name) if said is None else said)]))
        for name, said in given.items()
    }
    if force or not authority.authority_file(directory).exists():
        authority.make_authority(directory, now)
        made.append(authority.files(directory, "ca"))
        force = True
    for wanted in (
        Wanted("server", hosts["server"], serves=True),
        Wanted("gateway", uris=[certificates.GATEWAY]),
        Wanted("pool", hosts["pool"], [certificates.POOL], serves=True),
    ):
        if force or not _stands(authority.files(directory, wanted.name), wanted, now):
            made.append(authority.issue(directory, wanted, now))
    return made


def _stands(files: certificates.Files, wanted: Wanted, now: dt.datetime) -> bool:
    """Whether a certificate is as wanted, and for a while."""
    try:
        pair = certificates.read_pair(files)
    except errors.FailedPrecondition:
        return False
    same = set(pair.names) == {*wanted.hosts, *wanted.uris}
    return same and not certificates.warning(files.cert, pair.ends, now.timestamp())


def _hosts(directory: Path, name: str) -> list[str]:
    """Those that a certificate is for, if it is there: without other ones they stay."""
    files = authority.files(directory, name)
    if not files.cert.exists():
        return []
    try:
        return certificates.hosts_in(certificates.read_pair(files).names)
    except errors.FailedPrecondition as error:
        option = "--pool-host" if name == "pool" else "--host"
        raise errors.FailedPrecondition(f"{error.message}; say by {option} which names it was for") from None


def _say(directory: Path, made: list[certificates.Files], format_: output.Format | None) -> None:
    if output.wants_json(format_):
        output.print_json([{"cert": str(files.cert), "key": str(files.key)} for files in made])
        return
    for files in made:
        print(f"{files.cert}  key: {files.key.name}")
    if not made:
        print(f"nothing to do: the certificates in {directory} are good for a while")


COMMANDS = {"init": init, "client": client, "grant": grant, "grants": grants, "ungrant": ungrant}
