"""What --dev sets where nobody said otherwise, and which project it means."""

from pathlib import Path

import pytest
from agentruntime import errors
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pb
from agentruntime.cli import dev


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory."""
    (tmp_path / "agent.yaml").write_text("name: my-agent\nversion: 1.0.0\nentrypoint: agent:A\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(request: pb.RunAgentRequest, *, hot_reload: bool = False, named: Path | None = None) -> dev.Development:
    return dev.development(request, project=named, hot_reload=hot_reload, local=True)


def test_what_is_not_said_is_as_a_developer_wants_it(project: Path) -> None:
    request = pb.RunAgentRequest(image="my-agent")
    development = made(request)
    settings = development.request.settings
    assert (settings.log_level, settings.scaling.min_replicas, settings.serving.debug) == ("DEBUG", 1, True)
    assert (development.project, development.agent) == (project, "my-agent")
    assert request == pb.RunAgentRequest(image="my-agent")


def test_what_was_said_stays() -> None:
    said = pb.AgentSettings(log_level="ERROR", scaling=pb.Scaling(min_replicas=0), serving=pb.Serving(debug=False))
    assert made(pb.RunAgentRequest(image="my-agent", settings=said)).request.settings == said


def test_a_debugger_is_offered_only_where_it_can_be_let_in(tmp_path: Path) -> None:
    for settings in (pb.AgentSettings(network=pb.NETWORK_MODE_HOST), pb.AgentSettings(venv=str(tmp_path))):
        request = pb.RunAgentRequest(image="my-agent", settings=settings)
        assert not made(request).request.settings.serving.HasField("debug")
    remote = dev.development(pb.RunAgentRequest(image="my-agent"), project=None, hot_reload=False, local=False)
    assert not remote.request.settings.serving.HasField("debug")


def test_which_project_is_meant(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    assert made(pb.RunAgentRequest(image="another")).project is None
    assert made(pb.RunAgentRequest(image="another"), named=project).project == project
    assert made(pb.RunAgentRequest(image="my-agent@sha256:" + "0" * 64)).project is None
    with pytest.raises(errors.InvalidArgument, match=r"whose agent\.yaml says `name: another`"):
        made(pb.RunAgentRequest(image="another:1.0"), hot_reload=True)
    with pytest.raises(errors.InvalidManifest, match=r"agent\.yaml"):
        made(pb.RunAgentRequest(image="my-agent"), named=other)
