"""What `agent login` keeps: a token for each endpoint, in a file of this user alone, refreshed when it ends."""

import fcntl
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from agentruntime.errors import AgentError, Unauthenticated, Unavailable
from agentruntime.files import write_atomically

if TYPE_CHECKING:
    from agentruntime.oauth2.grants import OAuthClient, Token


@dataclass(frozen=True)
class Login:
    """One, as its file has it. A client's secret is not in it, but the name of the file that it is in."""

    # "https://host:port", "http://127.0.0.1:50051".
    endpoint: str
    issuer: str
    client_id: str
    access_token: str = field(repr=False)
    # Seconds since the epoch.
    obtained_at: float
    expires_at: float
    refresh_token: str = field(default="", repr=False)
    # "" for a login of a user by device code.
    secret_file: str = ""
    scope: str = ""
    resource: str = ""
    audience: str = ""
    ca_file: str = ""

    @property
    def client(self) -> "OAuthClient":
        from agentruntime.oauth2.grants import OAuthClient  # noqa: PLC0415 — because requests takes its time to import

        return OAuthClient(self.client_id, "", self.scope, self.resource, self.audience, self.ca_file)

    @property
    def token(self) -> "Token":
        from agentruntime.oauth2.grants import Token  # noqa: PLC0415 — as above

        return Token(self.access_token, self.obtained_at, self.expires_at, self.refresh_token)

    def with_token(self, token: "Token") -> "Login":
        """The login with the next token."""
        return replace(self, **asdict(token))


class LoginFile:
    """The login to one endpoint. Called, it gives the access token; several processes may share the file."""

    def __init__(self, directory: Path, endpoint: str) -> None:
        self.endpoint = endpoint
        name = hashlib.sha256(endpoint.encode()).hexdigest()[:16]
        self._directory = directory
        self._path = directory / f"{name}.json"
        self._lock_path = directory / f"{name}.lock"
        self._kept: Login | None = None

    def exists(self) -> bool:
        """Whether somebody logged in there, and did not log out."""
        return self._path.exists()

    def keep(self, login: Login) -> None:
        """Writes it down; only this user can read it."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(self._path, json.dumps(asdict(login)).encode())
        self._kept = login

    def forget(self) -> None:
        """Logs out, here; what the provider has issued ends by itself."""
        self._path.unlink(missing_ok=True)
        self._lock_path.unlink(missing_ok=True)
        self._kept = None

    def read(self) -> Login:
        """What is written there.

        Raises:
            Unauthenticated: nobody is logged in, or the file is not one of ours.
        """
        try:
            return Login(**json.loads(self._path.read_bytes()))
        except FileNotFoundError:
            raise Unauthenticated(f"nobody is logged in to {self.endpoint}; use `agent login`") from None
        except (OSError, ValueError, TypeError):
            raise Unauthenticated(f"the login in {self._path} cannot be read; use `agent login`") from None

    def __call__(self) -> str:
        """The access token. Blocks where a new one must be asked for.

        Raises:
            Unauthenticated: the login has ended.
            Unavailable: the provider gives no new token now, and the old one has ended.
        """
        login = self._kept or self.read()
        if login.token.stale(time.time()):
            with self._locked():
                # Another process may have been faster, and the provider may take a refresh token only once.
                login = self.read()
                if login.token.stale(time.time()):
                    login = self._renewed(login)
        self._kept = login
        return login.access_token

    def _renewed(self, login: Login) -> Login:
        now = time.time()
        try:
            after = login.with_token(_next_token(login, now))
        except Unavailable:
            if now < login.expires_at:
                return login
            raise
        except AgentError as error:
            if now < login.expires_at:
                return login
            raise Unauthenticated(
                f"the login to {login.endpoint} has ended ({error.message}); use `agent login`", reason="LOGIN_ENDED"
            ) from error
        self.keep(after)
        return after

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock_path.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _next_token(login: Login, now: float) -> "Token":
    from agentruntime.oauth2 import grants  # noqa: PLC0415 — because requests takes its time to import
    from agentruntime.oauth2.discovery import discover  # noqa: PLC0415 — as above

    if login.secret_file:
        client = grants.with_secret(login.client, Path(login.secret_file))
        return grants.by_client_credentials(discover(login.issuer, ca_file=login.ca_file), client, now)
    if login.refresh_token:
        return grants.refreshed(discover(login.issuer, ca_file=login.ca_file), login.client, login.token, now)
    raise Unauthenticated("the provider gave no refresh token; ask for the scope offline_access")
