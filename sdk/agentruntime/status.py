"""The one table between our errors and gRPC's codes, and the encoding of an error on the wire.

An error travels as a gRPC status with `google.rpc.ErrorInfo` (domain `uapi.v1`, reason, metadata) in
`grpc-status-details-bin` (https://grpc.io/docs/guides/error/#richer-error-model); the client rebuilds the
same class from it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from agentruntime import errors

DOMAIN = "uapi.v1"
DETAILS_KEY = "grpc-status-details-bin"
# Beside it where a call was not begun: a header that Envoy can read, which repeats the call then.
NOT_BEGUN_KEY = "x-uapi-not-begun"

CODES: dict[type[errors.AgentError], grpc.StatusCode] = {
    errors.AgentError: grpc.StatusCode.UNKNOWN,
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Aborted: grpc.StatusCode.ABORTED,
    errors.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.Unimplemented: grpc.StatusCode.UNIMPLEMENTED,
    errors.Internal: grpc.StatusCode.INTERNAL,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.DataLoss: grpc.StatusCode.DATA_LOSS,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Cancelled: grpc.StatusCode.CANCELLED,
}
_CLASSES = {code: cls for cls, code in CODES.items()}
_BY_NUMBER: dict[int, type[errors.AgentError]] = {code.value[0]: cls for code, cls in _CLASSES.items()}


def code_of(error: errors.AgentError) -> grpc.StatusCode:
    """The gRPC code of an error, looked up along its class's MRO."""
    return next(CODES[cls] for cls in type(error).__mro__ if cls in CODES)


def encode(error: errors.AgentError) -> bytes:
    """The serialized `google.rpc.Status` of an error, for `grpc-status-details-bin`."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    detail = any_pb2.Any()
    detail.Pack(info)
    code: int = code_of(error).value[0]
    wire: bytes = status_pb2.Status(code=code, message=error.message, details=[detail]).SerializeToString()
    return wire


def decode(error: grpc.RpcError) -> errors.AgentError:
    """The error that a service raised, rebuilt from the status that reached the caller.

    A class is found by the reason where the status carries one of ours, else by the code. A stream that a
    dying worker cut ends at a plain client as INTERNAL with RST_STREAM; here it is `Unavailable`.
    """
    code = error.code()
    message = error.details() or code.name
    info = _error_info(error)
    if info is None:
        if code is grpc.StatusCode.INTERNAL and "RST_STREAM" in message:
            return errors.Unavailable(f"the worker ended during the call ({message})", reason="WORKER_LOST")
        return _CLASSES.get(code, errors.AgentError)(message, reason=code.name)
    return rebuilt(code.value[0], message, info.reason, info.metadata)


def rebuilt(code: int, message: str, reason: str, metadata: Mapping[str, str]) -> errors.AgentError:
    """An error of ours out of what was written of it.

    Args:
        code: gRPC's number; 0 or an unknown one makes a plain `AgentError` if the reason is none of ours.
        message: its sentence.
        reason: by which its class is found.
        metadata: its details.
    """
    cls = next((leaf for leaf in _leaves(errors.AgentError) if leaf.reason == reason), None)
    cls = cls or _BY_NUMBER.get(code, errors.AgentError)
    error = cls.__new__(cls)
    # A leaf may compose its message from other arguments; the wire has the finished one.
    errors.AgentError.__init__(error, message, reason=reason, metadata=metadata)
    return error


def _error_info(error: grpc.RpcError) -> error_details_pb2.ErrorInfo | None:
    trailers: Any = error.trailing_metadata()  # a sequence of pairs; its stub does not say so
    for key, value in trailers or ():
        if key != DETAILS_KEY or not isinstance(value, bytes):
            continue
        for detail in status_pb2.Status.FromString(value).details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info) and info.domain == DOMAIN:
                return info
    return None


def _leaves(cls: type[errors.AgentError]) -> Iterator[type[errors.AgentError]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _leaves(sub)
