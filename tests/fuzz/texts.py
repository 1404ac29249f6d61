"""Texts that people and agents write: agent.yaml, runtime-config.yaml, units, names, egress, log lines."""

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

from agentruntime import errors, names, units, wire
from agentruntime.config import RuntimeConfig
from agentruntime.manifest import AgentManifest
from agentruntime.sections import egress_target

from agent_pool.logs import forward, lines
from agent_pool.resources import Requested, resolve
from agent_pool.revision import Program
from tests.fuzz.target import Target, is_said, text


def manifest(data: bytes) -> None:
    """agent.yaml: read or InvalidManifest, and what is read can be run."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "agent.yaml").write_bytes(data)
        try:
            read = AgentManifest.load(Path(directory))
        except errors.InvalidManifest as error:
            is_said(error.message)
            return
    names.check_agent_name(read.name)
    names.ImageReference.parse(f"{read.name}:{read.version}")
    program = Program.of(read)
    assert Program.model_validate_json(program.model_dump_json()) == program
    try:
        resolve(Requested(), program.resources)
    except errors.InvalidArgument as error:
        is_said(error.message)


def runtime_config(data: bytes) -> None:
    """runtime-config.yaml: read or InvalidArgument, and what is read can be sent."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "runtime-config.yaml"
        file.write_bytes(data)
        (Path(directory) / "config.json").write_bytes(data)
        reads: list[Callable[[], RuntimeConfig]] = [
            lambda: RuntimeConfig.load(file=file, environ={}),
            lambda: RuntimeConfig.from_json(Path(directory) / "config.json"),
        ]
        for read in reads:
            try:
                wire.agent_settings(read()).SerializeToString()
            except errors.InvalidArgument as error:
                is_said(error.message)


def unit(data: bytes) -> None:
    """Sizes, shares, durations, rates of bits and of calls: a finite number or InvalidUnit."""
    written = text(data)
    for parse, longest in (
        (units.parse_size, 2**63),
        (units.parse_cpu, 10**10),
        (units.parse_duration, 2**63),
        (units.parse_rate, 2**63),
        (units.parse_calls, 10**6),
    ):
        try:
            value = float(parse(written))
        except errors.InvalidUnit as error:
            is_said(error.message)
            continue
        assert math.isfinite(value)
        assert 0 <= value <= longest, f"{parse.__name__} of {written[:40]!r} is {value}"
        units.format_size(value)
        units.format_duration(value)


def name(data: bytes) -> None:
    """Names of agents and images: read or InvalidArgument; what is read is written the same, and leads nowhere."""
    written = text(data)
    try:
        assert names.check_agent_name(written).isascii()
    except errors.InvalidArgument as error:
        is_said(error.message)
    try:
        read = names.ImageReference.parse(written)
    except errors.InvalidArgument as error:
        is_said(error.message)
        return
    assert names.ImageReference.parse(str(read)) == read
    assert str(read).isascii()
    assert str(read).isprintable()
    assert ".." not in read.repository.split("/")
    names.check_agent_name(read.agent)


def egress(data: bytes) -> None:
    """An entry of permissions.egress: a host and a port, or ValueError."""
    written = text(data).lower()
    try:
        host, port = egress_target(written)
    except ValueError as error:
        is_said(str(error))
        return
    assert 0 < port < 2**16
    assert host.isascii()
    assert host.isprintable()
    assert not set(host) & set(" /\\@#")


def log_line(data: bytes) -> None:
    """A line that a worker wrote: never refused, and it can be sent on."""
    line = lines.parse("my-agent-01", text(data))
    lines.at_least(line, "WARNING")
    record = lines.completed(line, "my-agent", 1.0)
    json.dumps(record)
    forward._message("agent.my-agent", [(line.time_s or 0.0, record)], {"size": 1})
    assert list(lines.merged([[line]], 1.0))


TARGETS = [
    Target(
        "manifest",
        manifest,
        (b"name: ", b"entrypoint: a:B\n", b"resources: {", b"!!int ", b"&a ", b"*a", b"<<: ", b"2001-02-30", b"? "),
    ),
    Target("runtime-config", runtime_config, (b"runtime:", b"resources:", b"!!float ", b"&a ", b"*a", b"<<: ")),
    Target("units", unit, (b"GiB", b"Mbps", b"ms", b"500m", b"1e9", b"999999999999999999999999")),
    Target("names", name, (b"localhost:5000/", b"@sha256:", b"../", b":latest", b"[::1]:")),
    Target("egress", egress, (b":443", b"[::1]", b"0x7f.1", b"..")),
    Target("log-line", log_line, (b'{"time":"', b'"level":', b"\\ud800", b"2026-11-21T00:00:00Z", b"[[[[")),
]
