"""API keys: how one is made, and what of it the platform keeps.

A key is "uapi_" and a JWT (RFC 7519), signed with Ed25519 (RFC 8037). Its private half is made for it alone, and gone
when `mint` returns: what is kept can check the key, and can make neither it nor another.
"""

import base64
import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from agentruntime._proto.uapi.v1 import access_pb2 as proto
from agentruntime.api_keys import PREFIX, key_id_of
from agentruntime.errors import InvalidArgument
from agentruntime.sections import NONE
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ISSUER = "uapi"
# How every key begins: the header of a JWT, in JSON, always does.
KEY_MARK = PREFIX + "eyJ"
# The key of $UAPI_HOME/token; whoever holds it is the platform's user.
LOCAL = "local"
ALL = "*"
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_MOST_AGENTS = 1000
# No date of it is too far for those who have to write it down.
_LONGEST_LIFE_S = 100 * 365 * 24 * 3600


@dataclass(frozen=True)
class Key:
    """What is kept of a key. Times in seconds since the epoch."""

    key_id: str
    name: str
    role: int
    agents: tuple[str, ...]
    # The public half, as a JWK has it (base64url).
    public: str
    created_at: float
    # None: never.
    expires_at: float | None = None
    # Calls per second, and calls in flight; 0 is no limit of its own.
    rate_per_second: float = 0.0
    max_concurrency: int = 0

    @property
    def principal(self) -> str:
        return principal(self.name)

    def live(self, now: float) -> bool:
        return self.expires_at is None or now < self.expires_at

    def message(self) -> proto.AccessKey:
        """What callers see of it."""
        message = proto.AccessKey(
            key_id=self.key_id,
            name=self.name,
            role=self.role,  # type: ignore[arg-type]  # a plain int is what the stubs call the enum's value type
            agents=self.agents,
            rate_per_second=self.rate_per_second,
            max_concurrency=self.max_concurrency,
        )
        message.created_at.FromMilliseconds(round(self.created_at * 1000))
        if self.expires_at is not None:
            message.expires_at.FromMilliseconds(round(self.expires_at * 1000))
        return message


def principal(name: str) -> str:
    """Whom the gateway takes the holder of a key for."""
    return LOCAL if name == LOCAL else f"key:{name}"


@dataclass(frozen=True)
class Wanted:
    """A key to be made."""

    name: str
    role: int
    agents: tuple[str, ...]
    # None: never.
    expires_in_s: float | None = None
    rate_per_second: float = 0.0
    max_concurrency: int = 0


def check(wanted: Wanted) -> Wanted:
    """The same, if such a key can be made.

    Raises:
        InvalidArgument: it cannot; says why.
    """
    if not _NAME.fullmatch(wanted.name):
        raise InvalidArgument(
            f"'{wanted.name}' is not a key's name; use at most 63 lower case letters, digits and hyphens, "
            "neither first nor last a hyphen"
        )
    if wanted.name == NONE:
        raise InvalidArgument(f"'{NONE}' is not a key's name: to `--api-key` it says that no key is demanded")
    check_grant(wanted.role, wanted.agents, "a key")
    if wanted.expires_in_s is not None and not wanted.expires_in_s > 0:
        raise InvalidArgument("a key must expire later than now; leave its duration out for one that does not expire")
    if wanted.expires_in_s is not None and wanted.expires_in_s > _LONGEST_LIFE_S:
        raise InvalidArgument("a key lasts at most 100 years; leave its duration out for one that does not expire")
    if not 0 <= wanted.rate_per_second < float("inf"):
        raise InvalidArgument("a key's rate is calls per second: 0, for the gateway's own limit, or more")
    return wanted


def check_grant(role: int, agents: tuple[str, ...], of: str) -> None:
    """Refuses a role for some agents that cannot be given.

    Args:
        role: which.
        agents: for which.
        of: what has it, as a sentence names it: "a key".

    Raises:
        InvalidArgument: it cannot; says why.
    """
    if role not in (proto.ROLE_CALL, proto.ROLE_OPERATE, proto.ROLE_ADMINISTER):
        raise InvalidArgument(f"the role of {of} is call, operate or administer")
    if not agents:
        raise InvalidArgument(f"say which agents {of} is for: their names, or '*' for all")
    if ALL in agents and len(agents) > 1:
        raise InvalidArgument("'*' stands for all agents; name it alone, or the agents without it")
    if len(agents) > _MOST_AGENTS:
        raise InvalidArgument(f"{of} is for at most {_MOST_AGENTS} agents; '*' is all of them")
    for agent in agents:
        if agent != ALL and not _NAME.fullmatch(agent):
            raise InvalidArgument(f"'{agent}' is not an agent name")
    if role == proto.ROLE_ADMINISTER and agents != (ALL,):
        raise InvalidArgument("the role administer is for all agents; say '*'")


def mint(wanted: Wanted, now: float) -> tuple[str, Key]:
    """A new key, and what is to be kept of it.

    Args:
        wanted: what `check` has let pass.
        now: seconds since the epoch.
    """
    private = Ed25519PrivateKey.generate()
    expires_at = None if wanted.expires_in_s is None else now + wanted.expires_in_s
    key = Key(
        key_id=secrets.token_hex(8),
        name=wanted.name,
        role=wanted.role,
        agents=tuple(dict.fromkeys(wanted.agents)),
        public=_base64(private.public_key().public_bytes_raw()),
        created_at=now,
        expires_at=expires_at,
        rate_per_second=wanted.rate_per_second,
        max_concurrency=wanted.max_concurrency,
    )
    header = {"alg": "EdDSA", "kid": key.key_id, "typ": "JWT"}
    claims: dict[str, object] = {"iss": ISSUER, "sub": key.principal, "jti": key.key_id, "iat": int(now)}
    if expires_at is not None:
        claims["exp"] = int(expires_at)
    signed = f"{_encoded(header)}.{_encoded(claims)}"
    return f"{PREFIX}{signed}.{_base64(private.sign(signed.encode()))}", key


def key_set(keys: Iterable[Key]) -> str:
    """The JSON Web Key Set (RFC 7517) that checks these keys."""
    members = [_member(key.key_id, key.public) for key in keys]
    return '{"keys":[' + ",".join(members) + "]}" if members else nobodys_keys()


@lru_cache(maxsize=1)
def nobodys_keys() -> str:
    """A key set that checks nothing, for Envoy takes no empty one: the other half of its key is gone."""
    public = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    return '{"keys":[' + _member("nobody", _base64(public)) + "]}"


def _member(key_id: str, public: str) -> str:
    return f'{{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","kid":"{key_id}","x":"{public}"}}'


def belongs(secret: str, keys: Sequence[Key]) -> bool:
    """Whether a key is one of these, by its signature."""
    found = next((key for key in keys if key.key_id == key_id_of(secret)), None)
    if found is None:
        return False
    signed, _, signature = secret.removeprefix(PREFIX).rpartition(".")
    try:
        Ed25519PublicKey.from_public_bytes(_bytes(found.public)).verify(_bytes(signature), signed.encode())
    except (InvalidSignature, ValueError):
        return False
    return True


def _encoded(content: Mapping[str, object]) -> str:
    return _base64(json.dumps(content, separators=(",", ":")).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
