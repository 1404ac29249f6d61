"""Asks whether vulnerabilities are known of the packages that we install, with pip-audit.

Status 0: none but those that audit-allowed.toml allows; 1: some, or an entry there has run out; 2: nobody could be
asked. PyPI is asked first, then OSV. With --may-be-offline, for `make check`, nobody to ask is said in one line and
is status 0.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(_HERE.parent))

from deploy.lock import CONSTRAINTS, LOCK, pins  # noqa: E402 — a script, too, finds it beside itself

_ALLOWED = _HERE / "audit-allowed.toml"
_TIMEOUT_S = 300
# No entry lasts longer: then somebody looks again.
_LONGEST_DAYS = 120


@dataclass(frozen=True)
class Allowed:
    """A vulnerability that we live with, for a reason, until a day."""

    id: str
    package: str
    reason: str
    until: datetime.date


@dataclass(frozen=True)
class Found:
    """A vulnerability of a package that we install, by all its names."""

    package: str
    version: str
    ids: tuple[str, ...]
    fixed_in: tuple[str, ...]

    def __str__(self) -> str:
        how = f"fixed in {', '.join(self.fixed_in)}" if self.fixed_in else "not fixed yet"
        return f"{self.package} {self.version}: {', '.join(self.ids)}, {how}"


class NobodyToAskError(Exception):
    """The advisories could not be reached, or not those of every package."""


def read_report(report: dict[str, Any]) -> list[Found]:
    """What pip-audit's JSON says.

    Raises:
        NobodyToAskError: a package was not looked up, which pip-audit itself takes for good.
    """
    found = []
    for each in report["dependencies"]:
        if "vulns" not in each:
            raise NobodyToAskError(str(each.get("skip_reason", f"{each['name']} was not looked up")))
        found += [
            Found(each["name"], each["version"], (vuln["id"], *vuln.get("aliases", ())), tuple(vuln["fix_versions"]))
            for vuln in each["vulns"]
        ]
    return found


def read_allowed(text: str) -> list[Allowed]:
    """The entries of the allow-list.

    Raises:
        SystemExit: one is not what it must be.
    """
    entries = []
    for each in tomllib.loads(text).get("allowed", []):
        if set(each) != {"id", "package", "reason", "until"} or not isinstance(each["until"], datetime.date):
            raise SystemExit(f"audit-allowed.toml: an entry has id, package, reason and until (a date), not {each}")
        if not str(each["reason"]).strip():
            raise SystemExit(f"audit-allowed.toml: {each['id']} has no reason")
        entries.append(Allowed(**each))
    return entries


def objections(found: list[Found], allowed: list[Allowed], today: datetime.date) -> list[str]:
    """What stands against a release, a line each."""
    lines = []
    for entry in allowed:
        if entry.until < today:
            lines.append(
                f"audit-allowed.toml: {entry.id} of {entry.package} was allowed until {entry.until}; look again"
            )
        elif (entry.until - today).days > _LONGEST_DAYS:
            lines.append(f"audit-allowed.toml: {entry.id} is allowed for more than {_LONGEST_DAYS} days; take less")
        elif not any(entry.package == each.package and entry.id in each.ids for each in found):
            lines.append(f"audit-allowed.toml: {entry.id} of {entry.package} is known no more; take it out")
    known = {(entry.package, entry.id) for entry in allowed}
    lines += [str(each) for each in found if not any((each.package, name) in known for name in each.ids)]
    return lines


def audit(services: list[list[str]]) -> list[Found]:
    """Asks one service after the other, until one knows all packages.

    Args:
        services: pip-audit's arguments that choose each.

    Raises:
        NobodyToAskError: none does; says why of each.
    """
    packages = {**pins(CONSTRAINTS.read_text()), **pins(LOCK.read_text())}
    reasons = []
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as list_of_all:
        list_of_all.write("".join(f"{name}=={version}\n" for name, version in sorted(packages.items())))
        list_of_all.flush()
        for service in services:
            try:
                return _ask(service, list_of_all.name)
            except NobodyToAskError as error:
                reasons.append(f"{service[1]}: {error}")
    raise NobodyToAskError("; ".join(reasons))


def _ask(service: list[str], requirements: str) -> list[Found]:
    argv = [sys.executable, "-m", "pip_audit", *service, "--requirement", requirements, "--no-deps", "--disable-pip",
            "--format", "json", "--progress-spinner", "off"]  # fmt: skip
    try:
        done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=_TIMEOUT_S)
        return read_report(json.loads(done.stdout))
    except subprocess.TimeoutExpired:
        raise NobodyToAskError(f"no answer within {_TIMEOUT_S} s") from None
    except ValueError:
        last = done.stderr.strip().splitlines()[-1:] or ["pip-audit said nothing"]
        raise NobodyToAskError(last[0]) from None


def main() -> int:
    parser = argparse.ArgumentParser(prog="make audit", description=__doc__)
    parser.add_argument("--may-be-offline", action="store_true", help="nobody to ask is no failure")
    parser.add_argument("--osv-url", help="another server that speaks OSV's API, and no other service is asked")
    arguments = parser.parse_args()
    allowed = read_allowed(_ALLOWED.read_text())
    services = [["-s", "pypi"], ["-s", "osv"]]
    if arguments.osv_url:
        services = [["-s", "osv", "--osv-url", arguments.osv_url]]
    try:
        found = audit(services)
    except NobodyToAskError as error:
        print(f"NOT AUDITED: the advisories of known vulnerabilities could not be reached ({error})", file=sys.stderr)
        return 0 if arguments.may_be_offline else 2
    lines = objections(found, allowed, datetime.datetime.now(datetime.UTC).date())
    for line in lines:
        print(line, file=sys.stderr)
    if not lines:
        print(f"no vulnerabilities are known but the {len(allowed)} that are allowed")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
