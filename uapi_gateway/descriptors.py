"""What the services behind the gateway look like: types and methods, out of the agents' own descriptors.

Agents are strangers to each other: two of them may define different files under one name. Each agent's types are
kept apart; only for reflection are they put together, and there a file whose name is taken gets another one.
"""

import hashlib
import importlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from agentruntime import log
from agentruntime._proto.uapi.v1 import (
    access_pb2,
    agent_gateway_pb2,
    agent_pool_pb2,
    agent_registry_pb2,
    audit_pb2,
    conversation_service_pb2,
    image_service_pb2,
    model_service_pb2,
    secret_service_pb2,
    system_calls_pb2,
    text_generation_pb2,
)
from google.protobuf import descriptor, descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

_log = log.get("uapi_gateway.descriptors")

HEALTH = "grpc.health.v1.Health"
REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
REGISTRY = "uapi.v1.AgentRegistry"
GATEWAY = "uapi.v1.AgentGateway"
POOL = "uapi.v1.AgentPool"
IMAGES = "uapi.v1.ImageService"
ACCESS = "uapi.v1.AccessService"
AUDIT = "uapi.v1.AuditService"
SECRETS = "uapi.v1.SecretService"
SYSTEM_CALLS = "uapi.v1.SystemCallService"
MODELS = "uapi.v1.ModelService"
TEXT_GENERATION = "uapi.v1.TextGenerationService"
# Of agents, where a call names one; else the platform's, which has the log that all of them write.
CONVERSATIONS = "uapi.v1.ConversationService"
A2A = "lf.a2a.v1.A2AService"
# Its methods, and which of them stream their answers; their requests are one message each. Here by name, for their
# protos are imported when somebody calls or asks for them (`a2a_set`).
A2A_METHODS = {
    "SendMessage": False,
    "SendStreamingMessage": True,
    "GetTask": False,
    "ListTasks": False,
    "CancelTask": False,
    "SubscribeToTask": True,
    "CreateTaskPushNotificationConfig": False,
    "GetTaskPushNotificationConfig": False,
    "ListTaskPushNotificationConfigs": False,
    "DeleteTaskPushNotificationConfig": False,
    "GetExtendedAgentCard": False,
}
# Services of the platform itself: no agent's claim to serve them changes where they are routed.
PLATFORM = frozenset(
    (
        HEALTH,
        *REFLECTION,
        REGISTRY,
        GATEWAY,
        POOL,
        IMAGES,
        ACCESS,
        AUDIT,
        SECRETS,
        SYSTEM_CALLS,
        CONVERSATIONS,
        MODELS,
        A2A,
    )
)

_MODULES = (
    access_pb2,
    agent_gateway_pb2,
    agent_pool_pb2,
    agent_registry_pb2,
    audit_pb2,
    conversation_service_pb2,
    image_service_pb2,
    model_service_pb2,
    secret_service_pb2,
    system_calls_pb2,
    text_generation_pb2,
    health_pb2,
    reflection_pb2,
    error_details_pb2,
)
_IDEMPOTENT = (
    descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS,
    descriptor_pb2.MethodOptions.IDEMPOTENT,
)


@dataclass(frozen=True)
class Method:
    """One method of a service."""

    service: str
    name: str
    idempotent: bool
    streams: bool
    # The request is one message.
    whole: bool

    @property
    def path(self) -> str:
        return f"/{self.service}/{self.name}"


@lru_cache(maxsize=1)
def platform_set() -> bytes:
    """A serialized FileDescriptorSet of the platform's own protos, with all they import."""
    seen = _with_imports(module.DESCRIPTOR for module in _MODULES)
    newer = _reflection_v1(seen[reflection_pb2.DESCRIPTOR.name])
    seen[newer.name] = newer
    return descriptor_pb2.FileDescriptorSet(file=seen.values()).SerializeToString()


@lru_cache(maxsize=1)
def a2a_set() -> bytes:
    """The same of A2A's proto, which is imported here."""
    file = importlib.import_module("a2a.types.a2a_pb2").DESCRIPTOR
    return descriptor_pb2.FileDescriptorSet(file=_with_imports([file]).values()).SerializeToString()


def _with_imports(files: Iterable[Any]) -> dict[str, descriptor_pb2.FileDescriptorProto]:
    """Files and all that they import, by name, each after its own imports."""
    seen: dict[str, descriptor_pb2.FileDescriptorProto] = {}

    def add(file: Any) -> None:
        if file.name in seen:
            return
        for dependency in file.dependencies:
            add(dependency)
        seen[file.name] = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(seen[file.name])

    for file in files:
        add(file)
    return seen


def _reflection_v1(alpha: descriptor_pb2.FileDescriptorProto) -> descriptor_pb2.FileDescriptorProto:
    """The file of reflection's v1, which the library lacks: v1alpha under another package name."""
    old, new = "grpc.reflection.v1alpha.", "grpc.reflection.v1."
    file = descriptor_pb2.FileDescriptorProto()
    file.CopyFrom(alpha)
    file.name = "grpc/reflection/v1/reflection.proto"
    file.package = new.rstrip(".")
    for message in file.message_type:
        for member in message.field:
            if member.type_name:
                member.type_name = member.type_name.replace(old, new)
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(old, new)
            method.output_type = method.output_type.replace(old, new)
    return file


@lru_cache(maxsize=1024)
def files_of(serialized: bytes) -> tuple[descriptor_pb2.FileDescriptorProto, ...]:
    """The files of a serialized FileDescriptorSet; none if it cannot be read."""
    try:
        read = descriptor_pb2.FileDescriptorSet.FromString(serialized)
    except DecodeError:
        read = None
    if read is None or not _is_text(read):
        _log.warning("unreadable descriptors", size_bytes=len(serialized))
        return ()
    return tuple(read.file)


def _is_text(message: Message) -> bool:
    """Whether all strings of a message are UTF-8; protobuf gives those of proto2 as bytes where they are not."""
    for described, value in message.ListFields():
        values = value if described.is_repeated else (value,)
        if described.type == described.TYPE_STRING:
            if not all(isinstance(each, str) for each in values):
                return False
        elif described.type == described.TYPE_MESSAGE and not all(map(_is_text, values)):
            return False
    return True


@lru_cache(maxsize=1024)
def methods_of(serialized: bytes) -> tuple[Method, ...]:
    """The methods of all services in a serialized FileDescriptorSet."""
    return tuple(
        Method(
            service=f"{file.package}.{service.name}" if file.package else service.name,
            name=method.name,
            idempotent=method.options.idempotency_level in _IDEMPOTENT,
            streams=method.client_streaming or method.server_streaming,
            whole=not method.client_streaming,
        )
        for file in files_of(serialized)
        for service in file.service
        for method in service.method
    )


def services_of(serialized: bytes) -> list[str]:
    """Full names of the services in a serialized FileDescriptorSet."""
    return sorted({method.service for method in methods_of(serialized)})


class Types:
    """The message types of one FileDescriptorSet, in a pool of their own."""

    def __init__(self, serialized: bytes) -> None:
        self._pool = descriptor_pool.DescriptorPool()
        files = {file.name: file for file in files_of(serialized)}
        added: set[str] = set()

        def add(name: str) -> None:
            if name in added or name not in files:
                return
            added.add(name)
            for dependency in files[name].dependency:
                add(dependency)
            self._pool.Add(files[name])

        for name in files:
            try:
                add(name)
            except TypeError as error:  # conflicting or incomplete: what depends on it is missing too
                _log.warning("unusable descriptors", file=name, error=str(error))

    def method(self, service: str, name: str) -> descriptor.MethodDescriptor | None:
        """A method's descriptor, or None."""
        try:
            found: descriptor.MethodDescriptor | None
            found = self._pool.FindServiceByName(service).methods_by_name.get(name)
        except (KeyError, TypeError):
            return None
        return found

    def has_service(self, service: str) -> bool:
        try:
            self._pool.FindServiceByName(service)
        except (KeyError, TypeError):
            return False
        return True

    @staticmethod
    def message(kind: descriptor.Descriptor) -> Message:
        """An empty message of a type."""
        made: Message = message_factory.GetMessageClass(kind)()
        return made


@lru_cache(maxsize=64)
def types_of(serialized: bytes) -> Types:
    """The types of a serialized FileDescriptorSet."""
    return Types(serialized)


def full_names(short: str, known: Iterable[str]) -> list[str]:
    """The known services that a name can mean: itself, else those that end in it."""
    known = set(known)
    if short in known:
        return [short]
    return sorted(name for name in known if name.rpartition(".")[2] == short)


@dataclass
class Catalogue:
    """All descriptors together, as reflection shows them."""

    files: dict[str, descriptor_pb2.FileDescriptorProto] = field(default_factory=dict)
    # Full name of a service, method, message, enum, field or extension -> its file.
    symbols: dict[str, str] = field(default_factory=dict)
    # (extended type, number) -> file.
    extensions: dict[tuple[str, int], str] = field(default_factory=dict)
    services: list[str] = field(default_factory=list)

    def closure(self, name: str) -> list[bytes]:
        """A file and all it imports, itself first, serialized."""
        found: dict[str, bytes] = {}
        wanted = [name]
        while wanted:
            current = wanted.pop(0)
            if current in found or current not in self.files:
                continue
            found[current] = self.files[current].SerializeToString()
            wanted += self.files[current].dependency
        return list(found.values())


def catalogue(sets: Mapping[str, bytes], services: Iterable[str]) -> Catalogue:
    """Puts the descriptors of all owners together; of two definitions of one symbol the first owner's is shown.

    Args:
        sets: serialized FileDescriptorSets by owner, the platform's first.
        services: full names to list.
    """
    result = Catalogue(services=sorted(set(services)))
    for owner, serialized in sets.items():
        renamed = _names(owner, files_of(serialized), result.files)
        for original in files_of(serialized):
            name = renamed[original.name]
            if name in result.files:
                continue
            file = descriptor_pb2.FileDescriptorProto()
            file.CopyFrom(original)
            file.name = name
            file.dependency[:] = [renamed.get(dependency, dependency) for dependency in original.dependency]
            result.files[name] = file
            for symbol in _symbols(file):
                result.symbols.setdefault(symbol, name)
            for extended, number in _extensions(file):
                result.extensions.setdefault((extended, number), name)
    return result


def _names(
    owner: str,
    files: tuple[descriptor_pb2.FileDescriptorProto, ...],
    taken: Mapping[str, descriptor_pb2.FileDescriptorProto],
) -> dict[str, str]:
    """What each file is called in the catalogue: its name, or another where that stands for something else.

    A file that imports a renamed one differs from its namesake by that import, so it is renamed as well.
    """
    names = {file.name: file.name for file in files}
    digests = {file.name: hashlib.sha256(file.SerializeToString()).digest() for file in files}
    clashing = {
        name for name in names if name in taken and digests[name] != hashlib.sha256(_wire(taken[name])).digest()
    }
    grew = True
    while grew:
        importing = {file.name for file in files if clashing.intersection(file.dependency)} - clashing
        grew = bool(importing)
        clashing |= importing
    return {name: f"{owner}/{name}" if name in clashing else name for name in names}


def _wire(file: descriptor_pb2.FileDescriptorProto) -> bytes:
    return file.SerializeToString()


def _symbols(file: descriptor_pb2.FileDescriptorProto) -> Iterator[str]:
    prefix = f"{file.package}." if file.package else ""
    for service in file.service:
        yield prefix + service.name
        for method in service.method:
            yield f"{prefix}{service.name}.{method.name}"
    for enum in file.enum_type:
        yield prefix + enum.name
    for extension in file.extension:
        yield prefix + extension.name
    for message in file.message_type:
        yield from _message_symbols(prefix, message)


def _message_symbols(prefix: str, message: descriptor_pb2.DescriptorProto) -> Iterator[str]:
    name = prefix + message.name
    yield name
    for kind in (message.field, message.enum_type, message.oneof_decl, message.extension):
        yield from (f"{name}.{member.name}" for member in kind)
    for nested in message.nested_type:
        yield from _message_symbols(f"{name}.", nested)


def _extensions(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[str, int]]:
    for extension in file.extension:
        yield extension.extendee.removeprefix("."), extension.number


def platform_subset(services: Iterable[str]) -> bytes:
    """A serialized FileDescriptorSet of some of the platform's services; empty for others."""
    files = {file.name: file for file in files_of(platform_set())}
    wanted = set(services)
    names = [
        file.name for file in files.values() if wanted.intersection(f"{file.package}.{s.name}" for s in file.service)
    ]
    chosen: dict[str, descriptor_pb2.FileDescriptorProto] = {}
    while names:
        name = names.pop()
        if name not in chosen:
            chosen[name] = files[name]
            names += files[name].dependency
    wire: bytes = descriptor_pb2.FileDescriptorSet(file=chosen.values()).SerializeToString()
    return wire
