"""What callers may do who are known by a certificate: a grant for each URI name, and one for all other names."""

import re
from dataclasses import dataclass

from agentruntime import certificates
from agentruntime._proto.uapi.v1 import access_pb2 as proto
from agentruntime.errors import InvalidArgument

from uapi_gateway.access import keys
from uapi_gateway.access.keys import ALL

# What a header can hold, and no list be misread for. RFC 5280 (4.2.1.6) has URIs in ASCII.
_URI = re.compile(r"[!-~]{1,1024}")
# Of a name by which Envoy knows an agent: as one, and not by its certificate.
AGENT_URI = "spiffe://agentruntime/agent/"
AGENT_NAME = "[a-z0-9-]+"


@dataclass(frozen=True)
class Certified:
    """What was said of a URI name, or of "*": every one of which nothing else is said."""

    uri: str
    # ROLE_UNSPECIFIED, without agents: it may do nothing.
    role: int
    agents: tuple[str, ...]
    # Seconds since the epoch; None if nobody has said so.
    granted_at: float | None

    def message(self) -> proto.CertificateGrant:
        message = proto.CertificateGrant(uri=self.uri, role=self.role, agents=self.agents)  # type: ignore[arg-type]  # as in Key.message
        if self.granted_at is not None:
            message.granted_at.FromMilliseconds(round(self.granted_at * 1000))
        return message


# A certificate of the authority that the gateway was given is as good as that authority makes it.
UNSAID = Certified(ALL, proto.ROLE_CALL, (ALL,), None)


def wanted(uri: str, role: int, agents: tuple[str, ...], now: float) -> Certified:
    """A grant, as it is asked for.

    Raises:
        InvalidArgument: there cannot be such a one; says why.
    """
    if not _URI.fullmatch(uri):
        raise InvalidArgument(
            "a certificate is named by its URI, like spiffe://agentruntime/client/ci, in at most 1024 visible ASCII "
            "characters, or by '*' for all others"
        )
    if re.fullmatch(AGENT_URI + AGENT_NAME, uri):
        raise InvalidArgument(f"{uri} is an agent; what it may do, `permissions` in its agent.yaml says")
    if uri == certificates.POOL:
        raise InvalidArgument(f"{uri} is the pool, which is there to be called, and calls nobody")
    if not role and not agents:
        return Certified(uri, proto.ROLE_UNSPECIFIED, (), now)
    role = role or proto.ROLE_CALL
    keys.check_grant(role, agents, "a certificate")
    return Certified(uri, role, tuple(dict.fromkeys(agents)), now)
