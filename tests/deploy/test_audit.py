"""The audit of packages: what passes, what does not, and that nobody to ask is never taken for good."""

import datetime
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from deploy import audit
from deploy.audit import Allowed, Found

TODAY = datetime.date(2026, 11, 21)
FOUND = Found("example", "1.0", ("PYSEC-1", "CVE-1"), ("1.1",))


def allowed(id_: str = "CVE-1", package: str = "example", days: int = 10) -> Allowed:
    return Allowed(id_, package, "never reached", TODAY + datetime.timedelta(days))


@pytest.mark.parametrize(
    ("found", "entries", "lines"),
    [
        ([], [], []),
        ([FOUND], [], ["example 1.0: PYSEC-1, CVE-1, fixed in 1.1"]),
        ([FOUND], [allowed()], []),
        ([FOUND], [allowed(days=0)], []),
        ([FOUND], [allowed(days=-1)], ["CVE-1 of example was allowed until 2026-11-20; look again"]),
        ([FOUND], [allowed(days=121)], ["CVE-1 is allowed for more than 120 days; take less"]),
        ([FOUND], [allowed(package="other")], ["CVE-1 of other is known no more; take it out", "example 1.0: PYSEC"]),
        ([], [allowed()], ["CVE-1 of example is known no more; take it out"]),
    ],
)
def test_objections(found: list[Found], entries: list[Allowed], lines: list[str]) -> None:
    said = audit.objections(found, entries, TODAY)
    assert len(said) == len(lines)
    assert all(line in each for line, each in zip(lines, said, strict=True))


def test_what_was_not_looked_up_is_not_good() -> None:
    fine = {"name": "a", "version": "1", "vulns": []}
    assert audit.read_report({"dependencies": [fine]}) == []
    vulnerable = {"name": "b", "version": "1", "vulns": [{"id": "X", "fix_versions": [], "aliases": ["Y"]}]}
    assert audit.read_report({"dependencies": [fine, vulnerable]}) == [Found("b", "1", ("X", "Y"), ())]
    with pytest.raises(audit.NobodyToAskError, match="not found on PyPI"):
        audit.read_report({"dependencies": [fine, {"name": "c", "skip_reason": "c was not found on PyPI"}]})


def test_entries_have_a_reason_and_a_day() -> None:
    assert audit.read_allowed((Path(audit.__file__).parent / "audit-allowed.toml").read_text()) == []
    whole = 'id = "X"\npackage = "p"\nreason = "r"\nuntil = 2026-12-01\n'
    assert audit.read_allowed(f"[[allowed]]\n{whole}") == [Allowed("X", "p", "r", datetime.date(2026, 12, 1))]
    for wrong in (
        whole.replace('reason = "r"\n', ""),
        whole.replace('"r"', '" "'),
        whole.replace("2026-12-01", '"2026-12-01"'),
        whole + 'more = "x"\n',
    ):
        with pytest.raises(SystemExit):
            audit.read_allowed(f"[[allowed]]\n{wrong}")


@contextmanager
def advisories(vulnerable: str) -> Iterator[str]:
    """A server that speaks as much of OSV's API as pip-audit asks: its URL. One package has a vulnerability."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = asked["package"]["name"]
            affected = {"package": {"name": name, "ecosystem": "PyPI"}, "ranges": [], "versions": [asked["version"]]}
            known = {"id": "PYSEC-2026-1", "aliases": ["CVE-2026-1"], "summary": "bad", "affected": [affected]}
            body = json.dumps({"vulns": [known]} if name == vulnerable else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, audit.__file__, *arguments], check=False, capture_output=True, text=True, timeout=100
    )


@pytest.mark.integration
def test_pip_audit_is_asked_and_understood() -> None:
    with advisories("requests") as url:
        done = run("--osv-url", url)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("requests 2.")
    assert "PYSEC-2026-1, CVE-2026-1, not fixed yet" in done.stderr
    # Nobody there now.
    for arguments, status in ((("--osv-url", url), 2), (("--osv-url", url, "--may-be-offline"), 0)):
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (status, "")
        assert done.stderr.startswith("NOT AUDITED: ")
        assert done.stderr.count("\n") == 1
