"""Descriptors: methods, types, and a catalogue that disagreeing agents cannot break."""

from google.protobuf import descriptor_pb2, descriptor_pool

from uapi_gateway import descriptors
from uapi_gateway.descriptors import Catalogue, Types, catalogue, full_names, methods_of, platform_set, services_of


def file(name: str, package: str, *fields: str, imports: tuple[str, ...] = ()) -> descriptor_pb2.FileDescriptorProto:
    """A file with message M of those fields, and service S with method Do(M) returns (M)."""
    made = descriptor_pb2.FileDescriptorProto(name=name, package=package, dependency=imports, syntax="proto3")
    message = made.message_type.add(name="M")
    for number, field in enumerate(fields, 1):
        message.field.add(name=field, number=number, type=9, label=1)
    method = made.service.add(name="S").method.add(name="Do", input_type=f".{package}.M", output_type=f".{package}.M")
    method.options.idempotency_level = descriptor_pb2.MethodOptions.IDEMPOTENT
    return made


def files(*every: descriptor_pb2.FileDescriptorProto) -> bytes:
    wire: bytes = descriptor_pb2.FileDescriptorSet(file=every).SerializeToString()
    return wire


def test_the_platforms_own_services_are_all_there() -> None:
    own = descriptors.PLATFORM - {descriptors.A2A} | {descriptors.TEXT_GENERATION}
    assert set(services_of(platform_set())) >= own
    idempotent = {m.path for m in methods_of(platform_set()) if m.idempotent}
    assert f"/{descriptors.TEXT_GENERATION}/GenerateText" in idempotent
    assert f"/{descriptors.GATEWAY}/CallAgent" not in idempotent


def test_the_platform_set_is_complete_and_loads() -> None:
    pool = descriptor_pool.DescriptorPool()
    for each in descriptors.files_of(platform_set()):
        pool.Add(each)
    found = pool.FindMethodByName("grpc.reflection.v1.ServerReflection.ServerReflectionInfo")
    assert found.input_type.full_name == "grpc.reflection.v1.ServerReflectionRequest"


def test_a_subset_loads_too_and_has_nothing_else() -> None:
    subset = descriptors.platform_subset([descriptors.TEXT_GENERATION, "acme.v1.Other"])
    assert services_of(subset) == [descriptors.TEXT_GENERATION]
    assert Types(subset).method(descriptors.TEXT_GENERATION, "StreamText") is not None
    assert descriptors.platform_subset(["acme.v1.Other"]) == b""


def test_types_of_one_agent_are_its_own() -> None:
    one, other = Types(files(file("a.proto", "p", "x"))), Types(files(file("a.proto", "p", "y", "z")))
    for types, fields in ((one, ["x"]), (other, ["y", "z"])):
        method = types.method("p.S", "Do")
        assert method is not None
        assert [field.name for field in method.input_type.fields] == fields
    assert one.method("p.S", "Undo") is None
    assert one.method("p.T", "Do") is None
    assert not one.has_service("p.T")


def test_unusable_descriptors_are_no_types() -> None:
    assert services_of(b"\xff\xff\xff") == []
    incomplete = Types(files(file("a.proto", "p", imports=("missing.proto",))))
    assert incomplete.method("p.S", "Do") is None


def test_short_names() -> None:
    known = ["a.v1.S", "b.v1.S", "a.v1.T"]
    assert full_names("T", known) == ["a.v1.T"]
    assert full_names("S", known) == ["a.v1.S", "b.v1.S"]
    assert full_names("b.v1.S", known) == ["b.v1.S"]
    assert full_names("v1.S", known) == []


def loads(shown: Catalogue, name: str) -> None:
    """All files of a closure fit together."""
    pool = descriptor_pool.DescriptorPool()
    for serialized in reversed(shown.closure(name)):
        pool.AddSerializedFile(serialized)


def test_two_agents_with_different_files_of_one_name() -> None:
    shared = file("shared.proto", "q", "x")
    changed = file("shared.proto", "q", "x", "y")
    sets = {
        "one": files(shared, file("a.proto", "p1", imports=("shared.proto",))),
        "two": files(changed, file("b.proto", "p2", imports=("shared.proto",))),
        "three": files(shared, file("c.proto", "p3", imports=("shared.proto",))),
    }
    shown = catalogue(sets, ["p1.S", "p2.S", "p1.S"])
    assert shown.services == ["p1.S", "p2.S"]
    assert set(shown.files) == {"shared.proto", "a.proto", "two/shared.proto", "two/b.proto", "c.proto"}
    assert shown.symbols["q.M"] == "shared.proto"
    for symbol, imported in (("p1.S", "shared.proto"), ("p2.S", "two/shared.proto"), ("p3.S", "shared.proto")):
        name = shown.symbols[symbol]
        assert list(shown.files[name].dependency) == [imported]
        loads(shown, name)


def test_symbols_and_extensions() -> None:
    made = file("a.proto", "p", "x")
    made.message_type[0].nested_type.add(name="N").field.add(name="f", number=1, type=9, label=1)
    made.enum_type.add(name="E").value.add(name="ZERO", number=0)
    made.extension.add(name="ext", number=7, extendee=".p.M", type=9, label=1)
    shown = catalogue({"one": files(made)}, [])
    for symbol in ("p.M", "p.M.x", "p.M.N", "p.M.N.f", "p.E", "p.S", "p.S.Do", "p.ext"):
        assert shown.symbols[symbol] == "a.proto"
    assert shown.extensions == {("p.M", 7): "a.proto"}
    assert shown.closure("missing.proto") == []


def test_a2as_methods_are_as_its_proto_has_them() -> None:
    methods = methods_of(descriptors.a2a_set())
    assert {method.service for method in methods} == {descriptors.A2A}
    assert {method.name: method.streams for method in methods} == descriptors.A2A_METHODS
    assert all(method.whole for method in methods)
