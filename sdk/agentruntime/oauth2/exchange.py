"""One short exchange of JSON with an identity provider over HTTP: bounded in size and time, and with nobody else."""

import ipaddress
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import HTTPError

from agentruntime.errors import InvalidArgument, Unavailable

# Of an answer. The largest key sets of public providers have some 20 KB.
LONGEST_ANSWER_BYTES = 2**20
_CONNECT_TIMEOUT_S = 5.0
# Between two pieces of an answer, and for all of it.
_READ_TIMEOUT_S = 5.0
_WHOLE_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Answer:
    """What came back: the status of HTTP, and the JSON object."""

    status: int
    content: dict[str, Any]


def check_url(url: str) -> str:
    """The URL, if what is said there is said in secret.

    Raises:
        ValueError: it is neither https nor on this machine's loopback, or is no URL.
    """
    parts = urlsplit(url)
    if (
        not url.isprintable()
        or not parts.hostname
        or parts.username
        or parts.fragment
        or parts.scheme not in ("http", "https")
    ):
        raise ValueError(f"'{url}' is not an https:// URL")
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise ValueError(f"'{url}' is not https; http:// is for this machine's own loopback only")
    return url


def ask(
    url: str,
    form: Mapping[str, str] | None = None,
    *,
    basic: tuple[str, str] | None = None,
    ca_file: str = "",
) -> Answer:
    """GETs a URL, or POSTs a form to it. Blocks for at most some 15 seconds.

    Args:
        url: https, or on loopback.
        form: fields.
        basic: user and password of HTTP's basic authentication.
        ca_file: PEM of the authorities to trust; the system's if "".

    Raises:
        InvalidArgument: the URL is not one to ask, or the CA file cannot be read.
        Unavailable: no answer, one that is too long, a redirect, or no JSON object.
    """
    try:
        check_url(url)
    except ValueError as error:
        raise InvalidArgument(f"{error}") from None
    with requests.Session() as session:
        # Neither a password of ~/.netrc nor a proxy to this machine itself.
        session.auth = basic or _no_authentication
        if _is_loopback(urlsplit(url).hostname or ""):
            session.trust_env = False
        # What comes is read as it is sent, and no short answer unpacks to a long one.
        session.headers.update({"Accept": "application/json", "Accept-Encoding": "identity"})
        try:
            with session.request(
                "GET" if form is None else "POST",
                url,
                data=form,
                timeout=(_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S),
                allow_redirects=False,
                verify=ca_file or True,
                stream=True,
            ) as response:
                return Answer(response.status_code, _content(url, response))
        except (requests.RequestException, HTTPError) as error:
            raise Unavailable(f"{url} does not answer: {_cause(error)}", reason="PROVIDER_UNAVAILABLE") from error
        except OSError as error:
            raise InvalidArgument(f"the CA file {ca_file} cannot be used: {error.strerror or error}") from error


def _content(url: str, response: requests.Response) -> dict[str, Any]:
    if response.is_redirect:
        raise Unavailable(
            f"{url} answers with a redirect, which is not followed; name the place itself",
            reason="PROVIDER_UNAVAILABLE",
        )
    deadline = time.monotonic() + _WHOLE_TIMEOUT_S
    body = b""
    while piece := response.raw.read1(2**16):
        body += piece
        if len(body) > LONGEST_ANSWER_BYTES:
            raise Unavailable(f"{url} answers more than 1 MiB", reason="PROVIDER_UNAVAILABLE")
        if time.monotonic() > deadline:
            raise Unavailable(f"{url} answers too slowly", reason="PROVIDER_UNAVAILABLE")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise Unavailable(
            f"{url} answers HTTP {response.status_code} without a JSON object", reason="PROVIDER_UNAVAILABLE"
        )
    return content


def _no_authentication(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _cause(error: BaseException) -> str:
    """The innermost cause: requests wraps three times what the socket said."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return str(error) or type(error).__name__


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
