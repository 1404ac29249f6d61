"""Which process an Envoy's record names."""

import json
import os
from pathlib import Path

from agentruntime import processes
from agentruntime.home import Home

from uapi_gateway.bootstrap import bootstrap, write_bootstrap
from uapi_gateway.envoy import EnvoyRecord, read_record, record_file
from uapi_gateway.settings import Settings


def test_a_pid_alone_names_nobody() -> None:
    own, started = os.getpid(), processes.start_time(os.getpid())
    assert EnvoyRecord(own, started, 1, "f", 2).alive()
    assert not EnvoyRecord(own, started - 5, 1, "f", 2).alive()
    assert not EnvoyRecord(2**22 + 1, 0.0, 1, "f", 2).alive()


def test_records_that_say_nothing_are_no_envoy(home: Home) -> None:
    assert read_record(home) is None
    for content in ("", "[]", '{"pid": 1}'):
        record_file(home).write_text(content)
        assert read_record(home) is None
    own = {
        "pid": os.getpid(),
        "started": processes.start_time(os.getpid()),
        "grpc_port": 7,
        "http_port": 8,
        "fingerprint": "f",
    }
    record_file(home).write_text(json.dumps(own))
    found = read_record(home)
    assert found is not None
    assert (found.grpc_port, found.http_port) == (7, 8)
    # One of before the HTTP port was Envoy's lets callers in unasked: it must be found, to be replaced.
    del own["http_port"]
    record_file(home).write_text(json.dumps(own))
    old = read_record(home)
    assert old is not None
    assert (old.alive(), old.http_port) == (True, 0)


def test_the_bootstrap_is_for_this_user_alone(tmp_path: Path, home: Home) -> None:
    write_bootstrap(Settings(root=home.root), tmp_path / "b.json")
    assert (tmp_path / "b.json").stat().st_mode & 0o777 == 0o600
    content = json.loads((tmp_path / "b.json").read_text())
    assert content == bootstrap(Settings(root=home.root))
    assert content["dynamic_resources"]["ads_config"]["api_type"] == "DELTA_GRPC"
