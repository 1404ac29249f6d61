import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from agentruntime import errors
from google.protobuf import descriptor_pb2

from agent_worker import loader
from tests.agent_worker.templates import write_bundle

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _imports_undone() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def test_an_agent_subclass_serves_text_generation(tmp_path: Path) -> None:
    bundle = write_bundle(
        tmp_path / "b",
        loader_text="from agentruntime.agent import Agent\n"
        "class A(Agent):\n    def generate(self, prompt, **_): return ''\n",
    )
    loaded = loader.load(str(bundle), "loader_text:A", [])
    assert loaded.services == (loader.TEXT_GENERATION,)
    assert loaded.generates_text
    files = descriptor_pb2.FileDescriptorSet.FromString(loaded.descriptors).file
    assert [file.name for file in files] == ["uapi/v1/text_generation.proto"]


def test_a_servicer_of_the_authors_own_proto_is_found(tmp_path: Path) -> None:
    (tmp_path / "app").symlink_to(EXAMPLES / "greeter")
    loaded = loader.load(str(tmp_path), "greeter:GreeterAgent", ["examples.greeter.v1.Greeter"])
    assert loaded.services == ("examples.greeter.v1.Greeter",)
    assert not loaded.generates_text


@pytest.mark.parametrize(
    ("code", "entrypoint", "promised", "said"),
    [
        ("class A: pass", "loader_bad:A", [], "serves nothing"),
        ("class A: pass", "loader_bad:B", [], "has no class 'B'"),
        ("class A: pass", "loader_gone:A", [], "has no module 'loader_gone'"),
        (
            "from agentruntime.agent import Agent\nclass A(Agent):\n    def on_message(self, m, c): return ''",
            "loader_bad:A",
            [],
            "must be `async def`",
        ),
        (
            "from agentruntime.agent import Agent\nclass A(Agent):\n    def generate(self, p, **_): return ''",
            "loader_bad:A",
            ["acme.v1.Other"],
            "does not serve acme.v1.Other",
        ),
    ],
)
def test_what_cannot_be_served_is_said(
    tmp_path: Path, code: str, entrypoint: str, promised: list[str], said: str
) -> None:
    bundle = write_bundle(tmp_path / "b", loader_bad=code)
    with pytest.raises(errors.InvalidManifest, match=said):
        loader.load(str(bundle), entrypoint, promised)


def test_the_agents_own_import_errors_come_through(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", loader_raises="import no_such_library")
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        loader.load(str(bundle), "loader_raises:A", [])


def test_deps_come_before_the_platforms_packages(tmp_path: Path) -> None:
    bundle = write_bundle(
        tmp_path / "b",
        loader_deps="import loader_lib\nfrom agentruntime.agent import Agent\n"
        "class A(Agent):\n    def generate(self, prompt, **_): return loader_lib.X\n",
    )
    (bundle / "deps").mkdir()
    (bundle / "deps" / "loader_lib.py").write_text("X = 'from deps'")
    loaded = loader.load(str(bundle), "loader_deps:A", [])
    assert loaded.cls().generate("") == "from deps"


def test_only_agents_with_on_message_have_conversations_imported(tmp_path: Path) -> None:
    for name, method in (("without", "generate(self, prompt, **_)"), ("with", "on_message(self, message, ctx)")):
        code = f"from agentruntime.agent import Agent\nclass A(Agent):\n    async def {method}: return ''\n"
        write_bundle(tmp_path / name, **{f"loader_{name}": code})
    code = (
        "import sys\nimport agent_worker.template, agent_worker.server\nfrom agent_worker import loader\n"
        f"loaded = loader.load({str(tmp_path)!r} + '/' + sys.argv[1], f'loader_{{sys.argv[1]}}:A', [])\n"
        "print(*loaded.services, 'agent_worker.conversations.serving' in sys.modules,\n"
        "      any('conversation' in name or 'event_log' in name for name in sys.modules))\n"
    )
    for name, said in (
        ("without", [loader.TEXT_GENERATION, "False", "False"]),
        ("with", [loader.CONVERSATIONS, "True", "True"]),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, name], capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stdout.split() == said
