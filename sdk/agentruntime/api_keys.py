"""API keys as their holders see them: "uapi_" and a signed token, which names its id."""

import base64
import json

PREFIX = "uapi_"
# Under this name an agent finds the key that `agent run --api-key` gave it, if its agent.yaml names it.
SECRET = "uapi-api-key"  # noqa: S105 — the name of one


def key_id_of(secret: str) -> str:
    """The id in a key, unchecked; "" if it is none."""
    parts = secret.removeprefix(PREFIX).split(".")
    if not secret.startswith(PREFIX) or len(parts) != 3:
        return ""
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return ""
    found = claims.get("jti") if isinstance(claims, dict) else None
    return found if isinstance(found, str) else ""
