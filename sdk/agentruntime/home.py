"""The runtime directory: where the platform of one user on one machine keeps its sockets, state and logs.

token               the API key of this user, mode 0600; the gateway makes it
certs/              certificates that `agent certs` made, and their keys
secrets.key         with which the agents' secrets are encrypted, mode 0600
run/                sockets and pid files (elsewhere if the path would be too long for a socket)
state/              databases of the pool and the gateway
images/             an OCI image layout
bundles/<digest>/   images unpacked
logins/             of this user to gateways, elsewhere too
logs/               of the platform; below agents/<agent>/ those of workers
"""

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from agentruntime.errors import FailedPrecondition

# sun_path holds 108 bytes with its final NUL (unix(7)); what we add below run/ stays under 40.
_LONGEST_RUN_DIR = 66
# Where it lies instead. Not $TMPDIR, which differs from shell to shell, nor /run/user, which goes when its user logs
# out: the platform stays.
_ELSEWHERE = Path("/tmp")  # noqa: S108 — what lies there is checked to be this user's alone


@dataclass(frozen=True)
class Home:
    """Paths below one runtime directory. Nothing is created before `create`."""

    root: Path

    @classmethod
    def default(cls) -> "Home":
        """`$UAPI_HOME`, else `agentruntime` in XDG's state directory."""
        if given := os.environ.get("UAPI_HOME"):
            return cls(Path(given).resolve())
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        return cls(Path(state) / "agentruntime")

    def create(self) -> None:
        """Makes the directories, closed to other users.

        Raises:
            FailedPrecondition: another user has made the run directory.
        """
        for directory in (self.root, self.run, self.state, self.logs, self.images, self.bundles, self.certs):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.root.chmod(0o700)
        _check_own(self.run)

    @property
    def token_file(self) -> Path:
        return self.root / "token"

    @property
    def secrets_key(self) -> Path:
        return self.root / "secrets.key"

    def token(self) -> str:
        """This user's own API key, or "" if there is none yet or it may not be read."""
        try:
            return self.token_file.read_text().strip()
        except OSError:
            return ""

    @property
    def certs(self) -> Path:
        return self.root / "certs"

    @property
    def run(self) -> Path:
        """Where sockets and pid files are.

        Raises:
            FailedPrecondition: it is where anybody may make directories, and another user did.
        """
        own = self.root / "run"
        if len(os.fsencode(own)) <= _LONGEST_RUN_DIR:
            return own
        name = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:12]
        elsewhere = _ELSEWHERE / f"agentruntime-{os.getuid()}-{name}"
        # Before every use: a socket in another's directory would be another's, and so would what is said there.
        _check_own(elsewhere)
        return elsewhere

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def logins(self) -> Path:
        """What `agent login` keeps: a file for each endpoint, of this user alone."""
        return self.root / "logins"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def bundles(self) -> Path:
        return self.root / "bundles"

    @property
    def gateway_socket(self) -> Path:
        """Envoy's listener for this user: everything is allowed there."""
        return self.run / "gateway.sock"

    @property
    def control_socket(self) -> Path:
        """The gateway's control plane: xDS, registry, relay."""
        return self.run / "control.sock"

    @property
    def pool_socket(self) -> Path:
        return self.run / "pool.sock"

    def kernel_dir(self, agent: str) -> Path:
        """Where the workers of an agent find the sockets that the platform has for them.

        The same for all where the platform is root, for there each worker has a uid of its own, which the kernel
        tells. Otherwise the way that somebody came is what tells the agents apart.
        """
        shared = self.run / "k"
        return shared if os.geteuid() == 0 else shared / short(agent)

    @property
    def peers(self) -> Path:
        """Where the pool says which worker has which uid: a file for each, `launch.PeerFile` as JSON."""
        return self.run / "peers"

    @property
    def envoy_admin_socket(self) -> Path:
        return self.run / "envoy.sock"

    @property
    def gateway_file(self) -> Path:
        """Where the gateway listens: JSON of pid and addresses, for as long as it runs."""
        return self.run / "gateway.json"

    @property
    def supervisor_file(self) -> Path:
        """What `agent up` started: JSON of pid, start time and addresses."""
        return self.run / "supervisor.json"


def short(name: str) -> str:
    """Of an agent's directory and the like: socket paths hold at most 107 bytes (unix(7))."""
    return hashlib.sha256(name.encode()).hexdigest()[:10]


def _check_own(directory: Path) -> None:
    try:
        found = directory.lstat()
    except FileNotFoundError:
        return
    own = found.st_uid == os.getuid() and stat.S_ISDIR(found.st_mode)
    if not own or stat.S_IMODE(found.st_mode) & 0o077:
        raise FailedPrecondition(
            f"{directory} is not a directory of this user alone; remove it, or name a shorter path by UAPI_HOME"
        )
