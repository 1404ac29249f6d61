"""A real identity provider, npm's oidc-provider on loopback, with keys that the tests know."""

import base64
import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import requests
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

NODE = Path(__file__).parent / "integration" / "node"
# Of the client `ci`, with what must be escaped on its way.
CI_SECRET = "ci's own secret: + % &"
AUDIENCE = "agentruntime"


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def number(value: int) -> str:
    return encoded(value.to_bytes((value.bit_length() + 7) // 8))


class SigningKey:
    """An RSA key, as a provider has it and as it publishes it."""

    def __init__(self, kid: str) -> None:
        self.kid = kid
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        numbers = self.key.private_numbers()
        public = numbers.public_numbers
        self.public = {
            "kty": "RSA", "use": "sig", "alg": "RS256", "kid": kid, "n": number(public.n), "e": number(public.e)
        }  # fmt: skip
        self.private = self.public | {
            name: number(value)
            for name, value in (
                ("d", numbers.d), ("p", numbers.p), ("q", numbers.q),
                ("dp", numbers.dmp1), ("dq", numbers.dmq1), ("qi", numbers.iqmp),
            )
        }  # fmt: skip

    def sign(self, claims: dict[str, Any], **header: str) -> str:
        """A token of these claims."""
        signed = unsigned(claims, {"alg": "RS256", "kid": self.kid, **header})
        return f"{signed}.{encoded(self.key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def unsigned(claims: dict[str, Any], header: dict[str, str]) -> str:
    """The first two parts of a token."""
    return f"{encoded(json.dumps(header).encode())}.{encoded(json.dumps(claims).encode())}"


class IdentityProvider:
    """The process; it can be ended and started again on the same port.

    Clients: `ci` and `chat`, with client credentials; `cli`, without a secret, with device codes and refresh tokens.
    Tokens are for the last part of the resource's name: "urn:agentruntime".
    """

    def __init__(self, port: int, *, access_token_s: int = 600) -> None:
        self.issuer = f"http://127.0.0.1:{port}"
        self.keys = [SigningKey("one")]
        self._port = port
        self._environment = {"ACCESS_TOKEN_S": str(access_token_s)}
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        assert (NODE / "node_modules").is_dir(), "run `npm ci` in tests/integration/node, or `make test`"
        self._process = subprocess.Popen(
            ["node", str(NODE / "provider.js"), str(self._port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", **self._environment},
        )
        self.publish(*self.keys)

    def publish(self, *keys: SigningKey) -> None:
        """Takes these keys into use; the first signs."""
        self.keys = list(keys)
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"keys": [key.private for key in keys]}) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "ready\n"

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def token(self, scope: str = "", *, client: str = "ci", secret: str = CI_SECRET, audience: str = AUDIENCE) -> str:
        """One that the provider itself has issued, to the client."""
        answer = requests.post(
            f"{self.issuer}/token",
            {"grant_type": "client_credentials", "scope": scope, "resource": f"urn:{audience}",
             "client_id": client, "client_secret": secret},
            timeout=10,
        )  # fmt: skip
        assert answer.ok, answer.text
        return str(answer.json()["access_token"])

    def signed(self, /, key: SigningKey | None = None, **claims: Any) -> str:
        """One that is signed with the provider's key, with claims that differ from what it would issue."""
        return (key or self.keys[0]).sign(self.claims(**claims))

    def claims(self, **changed: Any) -> dict[str, Any]:
        """Those of a good token for all agents, changed; None takes one out."""
        now = int(time.time())
        good = {"iss": self.issuer, "sub": "alice", "aud": AUDIENCE, "exp": now + 600, "scope": "uapi.call"}
        return {name: value for name, value in {**good, **changed}.items() if value is not None}

    def approve(self, uri: str, login: str = "alice") -> None:
        """What a user does in the browser, by the forms that the provider shows."""
        with requests.Session() as browser:
            page = browser.get(uri, timeout=10)
            while form := re.search(r'<form[^>]*action="([^"]*)"', page.text):
                fields = dict(re.findall(r'name="([^"]+)" value="([^"]*)"', page.text))
                if 'name="password"' in page.text:
                    fields |= {"login": login, "password": "any"}
                page = browser.post(urljoin(page.url, form[1]), fields, timeout=10)
                assert page.ok, page.text


@contextmanager
def identity_provider(**settings: Any) -> Iterator[IdentityProvider]:
    """One that runs, on a port that was free."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    provider = IdentityProvider(port, **settings)
    try:
        provider.start()
        yield provider
    finally:
        provider.stop()
