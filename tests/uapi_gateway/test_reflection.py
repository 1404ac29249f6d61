"""Reflection's answers."""

from grpc_reflection.v1alpha import reflection_pb2 as proto

from uapi_gateway import descriptors
from uapi_gateway.reflection import ReflectionService, answer
from uapi_gateway.registry import Agent, Registry

CATALOGUE = descriptors.catalogue({"platform": descriptors.platform_set()}, ["uapi.v1.AgentPool"])


def ask(**question: object) -> proto.ServerReflectionResponse:
    return answer(CATALOGUE, proto.ServerReflectionRequest(**question))  # type: ignore[arg-type]  # one of many fields


def test_services_files_and_symbols() -> None:
    assert [s.name for s in ask(list_services="").list_services_response.service] == ["uapi.v1.AgentPool"]
    by_symbol = ask(file_containing_symbol="uapi.v1.AgentPool.RunAgent")
    by_name = ask(file_by_filename="uapi/v1/agent_pool.proto")
    assert by_symbol == by_name
    assert len(by_symbol.file_descriptor_response.file_descriptor_proto) == 5  # with all it imports


def test_what_is_unknown_is_an_error_response() -> None:
    extension = proto.ExtensionRequest(containing_type="uapi.v1.Worker", extension_number=5)
    for response in (
        ask(file_containing_symbol="acme.v1.Nothing"),
        ask(file_by_filename="nothing.proto"),
        ask(file_containing_extension=extension),
        ask(all_extension_numbers_of_type="acme.v1.Nothing"),
    ):
        assert response.error_response.error_code == 5
    assert ask().error_response.error_code == 3
    known = ask(all_extension_numbers_of_type="uapi.v1.Worker").all_extension_numbers_response
    assert (known.base_type_name, list(known.extension_number)) == ("uapi.v1.Worker", [])


def test_the_catalogue_follows_the_registry() -> None:
    registry = Registry()
    service = ReflectionService(registry)
    assert "acme.v1.Chatter" not in service.catalogue().services
    assert service.catalogue() is service.catalogue()
    registry.put_pool_agent(Agent("a", ("acme.v1.Chatter",), ()))
    assert "acme.v1.Chatter" in service.catalogue().services
