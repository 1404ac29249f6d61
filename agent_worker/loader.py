"""Finds the agent's class in its image, and the gRPC services that it implements."""

import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentruntime import errors
from agentruntime.agent import Agent
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor

TEXT_GENERATION = "uapi.v1.TextGenerationService"
CONVERSATIONS = "uapi.v1.ConversationService"
AddServicer = Callable[[Any, Any], None]


@dataclass(frozen=True)
class LoadedAgent:
    """An agent's class, not yet instantiated."""

    cls: type
    # The generated `add_…Servicer_to_server` of each servicer that the class derives from.
    add_servicers: tuple[AddServicer, ...]
    # Full names, sorted.
    services: tuple[str, ...]
    # A serialized google.protobuf.FileDescriptorSet of the services with all they import.
    descriptors: bytes

    @property
    def generates_text(self) -> bool:
        """Whether the platform is to serve TextGenerationService by the class's `generate`."""
        return issubclass(self.cls, Agent) and self.cls.generate is not Agent.generate

    @property
    def holds_conversations(self) -> bool:
        """The same of ConversationService and `on_message`."""
        return issubclass(self.cls, Agent) and self.cls.on_message is not Agent.on_message


def load(bundle: str, entrypoint: str, promised: list[str]) -> LoadedAgent:
    """Imports the agent.

    Args:
        bundle: directory whose `app/` and `deps/` are put first on sys.path.
        entrypoint: "module:Class".
        promised: full names of services that agent.yaml lists; empty for none in particular.

    Raises:
        InvalidManifest: there is no such module or class, it serves nothing, or not what was promised.
        Exception: whatever the agent's code raises at import.
    """
    for part in ("deps", "app"):
        directory = str(Path(bundle, part))
        if Path(directory).is_dir() and directory not in sys.path:
            sys.path.insert(0, directory)
    module_name, _, class_name = entrypoint.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name:
            raise
        raise errors.InvalidManifest(f"entrypoint {entrypoint}: the image has no module '{module_name}'") from None
    cls = getattr(module, class_name, None)
    if not inspect.isclass(cls):
        raise errors.InvalidManifest(f"entrypoint {entrypoint}: module '{module_name}' has no class '{class_name}'")
    add_servicers = tuple(_add_servicers(cls))
    loaded = LoadedAgent(cls, add_servicers, (), b"")
    services = sorted({name for add in add_servicers for name in service_names(add)})
    # Here, so that no worker imports it after its fork; and only where it is needed.
    if loaded.generates_text:
        importlib.import_module("agent_worker.text_generation")
        services = sorted({*services, TEXT_GENERATION})
    if loaded.holds_conversations:
        _check_on_message(cls, entrypoint)
        importlib.import_module("agent_worker.conversations.serving")
        services = sorted({*services, CONVERSATIONS})
    if not services:
        raise errors.InvalidManifest(
            f"{entrypoint}: {class_name} serves nothing; define on_message() or generate(), "
            "or derive from a generated servicer"
        )
    if missing := sorted(set(promised) - set(services)):
        raise errors.InvalidManifest(f"entrypoint {entrypoint}: {class_name} does not serve {', '.join(missing)}")
    return LoadedAgent(cls, add_servicers, tuple(services), describe(services))


def _check_on_message(cls: Any, entrypoint: str) -> None:
    method = cls.on_message
    if not inspect.iscoroutinefunction(method) and not inspect.isasyncgenfunction(method):
        raise errors.InvalidManifest(
            f"entrypoint {entrypoint}: on_message() must be `async def`; "
            "what blocks in it can be run by `await asyncio.to_thread(…)`"
        )


def _add_servicers(cls: type) -> list[AddServicer]:
    """grpcio-tools puts `add_XServicer_to_server` beside each class XServicer."""
    found = []
    for base in cls.__mro__:
        module = sys.modules.get(base.__module__)
        add = getattr(module, f"add_{base.__name__}_to_server", None)
        if callable(add):
            found.append(add)
    return found


class _Names:
    """Stands where a server would, to hear which services a servicer would be added as."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        self.found += [handler.service_name() for handler in handlers]

    def add_registered_method_handlers(self, service: str, _handlers: Any) -> None:
        self.found.append(service)


class _AnyServicer:
    """Has every method, for `service_names`, which calls none."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def service_names(add: AddServicer) -> set[str]:
    """Full names of the services that a generated `add_…_to_server` adds."""
    names = _Names()
    add(_AnyServicer(), names)
    return set(names.found)


def describe(services: list[str]) -> bytes:
    """A serialized FileDescriptorSet of services known to the default pool, imports before importers."""
    pool = descriptor_pool.Default()
    files: dict[str, FileDescriptor] = {}

    def add(file: FileDescriptor) -> None:
        if file.name not in files:
            for dependency in file.dependencies:
                add(dependency)
            files[file.name] = file

    for name in services:
        try:
            add(pool.FindServiceByName(name).file)
        except KeyError:
            raise errors.InvalidManifest(f"service {name} has no descriptor; import its _pb2 module") from None
    result = descriptor_pb2.FileDescriptorSet()
    for file in files.values():
        file.CopyToProto(result.file.add())
    return result.SerializeToString()
