"""An identity provider of the benchmarks' own: one RSA key on loopback, and a token that it has signed."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

_AUDIENCE = "agentruntime"
_KEY_BITS = 2048
_LIFETIME_S = 86_400


@dataclass(frozen=True)
class Issued:
    """What a gateway and a caller need."""

    # identity-providers.yaml, which JSON is, too.
    configuration: str
    token: str


@contextmanager
def identity_provider(scope: str) -> Iterator[Issued]:
    """Serves its key set, and issues one token of that scope."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS)
    numbers = key.public_key().public_numbers()
    public = {"kty": "RSA", "alg": "RS256", "kid": "bench", "n": _number(numbers.n), "e": _number(numbers.e)}
    body = json.dumps({"keys": [public]}).encode()

    class KeySet(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), KeySet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            issuer = f"http://127.0.0.1:{server.server_port}"
            provider = {"name": "bench", "issuer": issuer, "audiences": [_AUDIENCE], "jwks_uri": f"{issuer}/jwks"}
            now = int(time.time())
            claims = {"iss": issuer, "sub": "bench", "aud": _AUDIENCE, "iat": now, "exp": now + _LIFETIME_S}
            signed = f"{_json({'alg': 'RS256', 'kid': 'bench'})}.{_json({**claims, 'scope': scope})}"
            signature = key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
            yield Issued(json.dumps({"providers": [provider]}), f"{signed}.{_encoded(signature)}")
        finally:
            server.shutdown()
            thread.join()


def _json(content: dict[str, Any]) -> str:
    return _encoded(json.dumps(content).encode())


def _number(value: int) -> str:
    return _encoded(value.to_bytes((value.bit_length() + 7) // 8))


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
