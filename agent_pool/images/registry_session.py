"""Requests to one repository of a registry: who asks, https or not, and what its answers mean."""

import base64
import contextlib
import ipaddress
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from agentruntime import errors
from agentruntime.names import ImageReference
from docker import auth
from docker.errors import DockerException
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.util import parse_url

_CONNECT_TIMEOUT_S = 10.0
# Between two pieces of an answer.
_READ_TIMEOUT_S = 60.0
# Where Docker Hub's API is, and what it calls images of nobody in particular.
_HUB = ("docker.io", "index.docker.io")
_HUB_API = "registry-1.docker.io"
_HUB_LIBRARY = "library/"
# One of a challenge's parameters, RFC 9110, section 11.2.
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')

# Of a token or a refusal.
_LONGEST_ANSWER_BYTES = 2**20
_PORTS = {"http": 80, "https": 443}


class RegistrySession:
    """Of one repository.

    Args:
        reference: names registry and repository.
        actions: what is to be done there, "pull" or "pull,push".
    """

    def __init__(self, reference: ImageReference, actions: str) -> None:
        self.host = reference.registry
        hub = self.host in _HUB
        prefix = _HUB_LIBRARY if hub and "/" not in reference.repository else ""
        self._repository = prefix + reference.repository
        self._actions = actions
        self._reference = reference
        scheme = "http" if _is_loopback(self.host) else "https"
        # What a path is below.
        self.base = f"{scheme}://{_HUB_API if hub else self.host}/v2/{self._repository}/"
        self._authorization = ""
        self._session = _Session()
        # What comes is read as it is sent, and no short answer unpacks to a long one.
        self._session.headers["Accept-Encoding"] = "identity"

    def __enter__(self) -> "RegistrySession":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    def has(self, path: str, **more: Any) -> bool:
        """Whether there is something at a path below the repository. `more` is as `requests` takes it."""
        with self._ask("HEAD", path, **more) as response:
            return bool(response.status_code == requests.codes.ok)

    def request(
        self, method: str, path: str, *, body: Path | None = None, stream: bool = False, **more: Any
    ) -> requests.Response:
        """What the registry answers.

        Args:
            method: of HTTP.
            path: below the repository, or a whole URL that the registry named.
            body: a file that is sent.
            stream: whether the answer's content matters, and is read by the caller.
            **more: as `requests` takes them.

        Raises:
            ImageNotFound: it has no such thing.
            Unauthenticated: it wants another credential.
            FailedPrecondition: it refuses.
            Unavailable: it does not answer, or not now.
        """
        response = self._ask(method, path, body, **more)
        if not response.ok:
            with response:
                raise self._refusal(response)
        if not stream:
            response.close()
        return response

    def _ask(self, method: str, path: str, body: Path | None = None, **more: Any) -> requests.Response:
        response = self._send(method, path, body, **more)
        # Another host, to which a redirect or an upload's place led, is not told who asks.
        if response.status_code == requests.codes.unauthorized and _origin(response.url) == _origin(self.base):
            with response:
                self._authorization = self._answer(response.headers.get("WWW-Authenticate", ""))
            response = self._send(method, path, body, **more)
        return response

    def _send(self, method: str, path: str, body: Path | None, **more: Any) -> requests.Response:
        url = urljoin(self.base, path)
        if _in_clear(self.base, url):
            raise errors.FailedPrecondition(f"the registry {self.host} wants to go on over plain HTTP, at '{url}'")
        headers = dict(more.pop("headers", {}))
        if self._authorization and _origin(url) == _origin(self.base):
            headers["Authorization"] = self._authorization
        with contextlib.ExitStack() as stack:
            if body is not None:
                more["data"] = stack.enter_context(body.open("rb"))
            return self._exchange(method, url, headers=headers, **more)

    def _exchange(self, method: str, url: str, **more: Any) -> requests.Response:
        try:
            # Credentials come from Docker's configuration, and not from a .netrc as well.
            return self._session.request(
                method, url, auth=_as_it_is, timeout=(_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S), stream=True, **more
            )
        except requests.exceptions.SSLError as error:
            raise errors.Unavailable(
                f"the registry {self.host} is not who it should be, or speaks no TLS ({_reason(error)})"
            ) from None
        except requests.RequestException as error:
            raise errors.Unavailable(f"the registry {self.host} does not answer ({_reason(error)})") from None
        except ValueError:
            # Of headers that are none, a place to go on at above all.
            raise errors.Unavailable(f"the registry {self.host} answers what is no HTTP") from None

    def _answer(self, challenge: str) -> str:
        """The header by which the registry will know who asks.

        Raises:
            Unauthenticated: there is no credential for it.
        """
        scheme, _, rest = challenge.partition(" ")
        known = credentials(self.host)
        if scheme.lower() == "bearer":
            return f"Bearer {self._token(dict(_PARAMETER.findall(rest)), known)}"
        if "username" not in known:
            raise errors.Unauthenticated(f"the registry {self.host} wants a login; `docker login {self.host}` first")
        return _basic(known)

    def _token(self, asked: Mapping[str, str], known: Mapping[str, str]) -> str:
        """https://distribution.github.io/distribution/spec/auth/token/, and .../oauth/ for identity tokens."""
        what = {"service": asked.get("service", ""), "scope": f"repository:{self._repository}:{self._actions}"}
        where = asked.get("realm", "")
        scheme, host, _ = _origin(where)
        if scheme != "https" and not (scheme == "http" and _is_loopback(host)):
            raise errors.FailedPrecondition(f"the registry {self.host} wants a login over plain HTTP, at '{where}'")
        if identity := known.get("identitytoken"):
            form = {**what, "grant_type": "refresh_token", "client_id": "agentruntime", "refresh_token": identity}
            # Without redirects, with which the body would go anywhere.
            response = self._exchange("POST", where, data=form, allow_redirects=False)
        else:
            headers = {"Authorization": _basic(known)} if "username" in known else {}
            response = self._exchange("GET", where, params=what, headers=headers, allow_redirects=False)
        with response:
            if not response.ok:
                raise self._refusal(response)
            content = self._short(response)
        try:
            answer = json.loads(content)
            return str(answer.get("token") or answer["access_token"])
        except (ValueError, KeyError, AttributeError, RecursionError):
            raise errors.FailedPrecondition(f"the login of the registry {self.host} answers no token") from None

    def _short(self, response: requests.Response) -> bytes:
        """An answer's content, cut off where it is longer than any that means something."""
        try:
            return bytes(response.raw.read(_LONGEST_ANSWER_BYTES, decode_content=False))
        except (HTTPError, OSError) as error:
            raise errors.Unavailable(f"the registry {self.host} broke off ({error}); try again") from None

    def _refusal(self, response: requests.Response) -> errors.AgentError:
        said = _words(self._short(response)) or f"HTTP {response.status_code}"
        match response.status_code:
            case requests.codes.unauthorized | requests.codes.forbidden:
                return errors.Unauthenticated(
                    f"the registry {self.host} does not let you {self._actions.rpartition(',')[2]} "
                    f"{self._repository} ({said}); `docker login {self.host}` as somebody who may"
                )
            case requests.codes.not_found:
                return errors.ImageNotFound(f"the registry {self.host} has no {self._reference} ({said})")
            case requests.codes.too_many_requests:
                return errors.Unavailable(f"the registry {self.host} takes no more requests now ({said}); try again")
            case code if code >= requests.codes.server_error:
                return errors.Unavailable(f"the registry {self.host} failed ({said}); try again")
        return errors.FailedPrecondition(f"the registry {self.host} refuses ({said})")


class _Session(requests.Session):
    """Without credentials of a .netrc, also after a redirect, which stays with https."""

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        before, after = str(response.request.url), str(prepared_request.url)
        if _in_clear(before, after):
            raise errors.FailedPrecondition(f"the registry redirects to plain HTTP, at '{after}'")
        if self.should_strip_auth(before, after):  # type: ignore[no-untyped-call]  # types-requests has it so
            prepared_request.headers.pop("Authorization", None)


def credentials(host: str) -> Mapping[str, str]:
    """What Docker's configuration, or a helper program that it names, has for a registry; empty for nothing.

    Of "username", "password" and "identitytoken".

    Raises:
        FailedPrecondition: the configuration or the helper fails.
    """
    try:
        found = auth.load_config().resolve_authconfig(auth.INDEX_NAME if host in _HUB else host) or {}
    except DockerException as error:
        raise errors.FailedPrecondition(f"Docker's configuration has no usable login for {host}: {error}") from None
    # From a file and from a helper they come in different spelling.
    return {key.lower(): str(value) for key, value in found.items() if value}


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _basic(known: Mapping[str, str]) -> str:
    pair = f"{known['username']}:{known.get('password', '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


def _is_loopback(netloc: str) -> bool:
    name = urlsplit(f"//{netloc}").hostname or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port that a request goes to; empty for what is no URL.

    As urllib3 reads them, which sends it: `urlsplit` finds another host in "http://one\\@other/".
    """
    try:
        parsed = parse_url(url)
    except LocationParseError:
        return "", "", None
    scheme = parsed.scheme or ""
    return scheme, parsed.host or "", parsed.port or _PORTS.get(scheme)


def _in_clear(before: str, after: str) -> bool:
    return _origin(before)[0] == "https" and _origin(after)[0] == "http"


def _reason(error: requests.RequestException) -> str:
    inner = error.args[0] if error.args else error
    # Without the connection object that urllib3 names first.
    return str(getattr(inner, "reason", inner)).rpartition("): ")[2]


def _words(refusal: bytes) -> str:
    """What a refusal says, in few words: https://github.com/opencontainers/distribution-spec, "Error codes"."""
    try:
        return "; ".join(str(each["message"]) for each in json.loads(refusal)["errors"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
