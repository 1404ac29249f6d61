"""How an agent from outside stays registered: its data, and what to do about its lease next. No I/O in here."""

from collections.abc import Mapping
from typing import Any

from google.protobuf import duration_pb2, json_format

from agentruntime import errors
from agentruntime._proto.uapi.v1 import agent_registry_pb2 as registry_pb2

# A lease is renewed so many times before it could run out: two renewals may get lost.
_RENEWALS_PER_LEASE = 3
_FIRST_RETRY_S = 0.5


def register_request(data: Mapping[str, Any], lease_ttl_s: float | None) -> registry_pb2.RegisterAgentRequest:
    """The request for registration data, by the field names of `AgentRegistration`, and a lease in seconds.

    Raises:
        InvalidArgument: a key is unknown, a value has the wrong type, or the agent or its endpoint is missing.
    """
    try:
        message = json_format.ParseDict(dict(data), registry_pb2.AgentRegistration())
    except json_format.ParseError as error:
        known = ", ".join(registry_pb2.AgentRegistration.DESCRIPTOR.fields_by_name)
        raise errors.InvalidArgument(
            f"registration data cannot be read, {error}; its keys are {known}", reason="INVALID_REGISTRATION"
        ) from None
    missing = [name for name in ("agent_id", "endpoint") if not getattr(message, name)]
    if missing:
        raise errors.InvalidArgument(
            f"registration data lacks {' and '.join(missing)}", reason="INVALID_REGISTRATION"
        )
    if lease_ttl_s is None:
        return registry_pb2.RegisterAgentRequest(registration=message)
    ttl = duration_pb2.Duration()
    ttl.FromNanoseconds(round(lease_ttl_s * 1e9))
    return registry_pb2.RegisterAgentRequest(registration=message, lease_ttl=ttl)


class Lease:
    """A registration's lease. Whoever owns it waits `delay_s`, sends `request()`, and reports what came of it."""

    def __init__(self, registered: registry_pb2.RegisterAgentRequest) -> None:
        self._register = registered
        self._lease_id = ""
        self._ttl_s = 0.0
        self._failures = 0

    @property
    def agent_id(self) -> str:
        return self._register.registration.agent_id

    @property
    def delay_s(self) -> float:
        """Seconds until the next request: a third of the lease, less after a failure."""
        renewal_s = self._ttl_s / _RENEWALS_PER_LEASE
        if not self._failures:
            return renewal_s
        return min(renewal_s or _FIRST_RETRY_S, _FIRST_RETRY_S * 2.0 ** min(self._failures - 1, 10))

    def request(self) -> registry_pb2.RegisterAgentRequest | registry_pb2.KeepAliveRequest:
        """What to send: a renewal while there is a lease, else the registration again."""
        return registry_pb2.KeepAliveRequest(lease_id=self._lease_id) if self._lease_id else self._register

    def answered(self, response: registry_pb2.RegisterAgentResponse | registry_pb2.KeepAliveResponse) -> None:
        """The gateway granted it."""
        self._failures = 0
        self._ttl_s = response.lease_ttl.ToTimedelta().total_seconds()
        if isinstance(response, registry_pb2.RegisterAgentResponse):
            self._lease_id = response.lease_id

    def failed(self, error: errors.AgentError) -> None:
        """The gateway did not. A lease that it does not know is lost, and the agent registers again."""
        self._failures += 1
        if isinstance(error, errors.NotFound):
            self._lease_id = ""
