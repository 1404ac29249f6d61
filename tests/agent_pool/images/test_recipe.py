"""The recipe of container images: pinned, the same bytes again, and nothing that an agent.yaml could slip in."""

import importlib.metadata
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from agentruntime import errors
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from agent_pool.images import builtin, container_install, recipe

DIGEST = "sha256:" + "0" * 64


def bundle(tmp_path: Path, manifest: str = "") -> Path:
    app = tmp_path / "app"
    app.mkdir(exist_ok=True)
    (app / "agent.yaml").write_text(f"name: tester\nversion: 1.0.0\nentrypoint: m:C\n{manifest}")
    (app / "m.py").write_text("class C: pass\n")
    return tmp_path


def test_layers_come_in_the_order_in_which_they_change(tmp_path: Path) -> None:
    of = bundle(tmp_path, "python: {requirements: ['numpy==2', 'a[b] >= 1; python_version > \"3\"']}\n")
    text = recipe.recipe(DIGEST, of, "python:3.12-slim").dockerfile
    lines = [
        line for line in text.splitlines() if line.startswith(("FROM", "RUN", "COPY agent", "USER", "ENTRYPOINT"))
    ]
    assert lines[0] == "FROM python:3.12-slim"
    assert f'"grpcio=={importlib.metadata.version("grpcio")}"' in lines[2]
    own = json.loads(lines[3].removeprefix("RUN "))
    assert own[-4:] == ["/agent/deps", "--", "numpy==2", 'a[b] >= 1; python_version > "3"']
    assert lines[5:] == [
        "COPY agent/ /",
        "USER 65534:65534",
        'ENTRYPOINT ["python", "-P", "-m", "agent_worker.container"]',
    ]
    assert f"LABEL dev.agentruntime.agent-image={DIGEST}" in text


def test_the_recipe_changes_with_what_goes_in_and_not_with_the_agent_s_code(tmp_path: Path) -> None:
    of = bundle(tmp_path)
    first = recipe.recipe(DIGEST, of, "a:1")
    (of / "app" / "m.py").write_text("x = 1\n")
    assert recipe.recipe(DIGEST, of, "a:1").digest == first.digest
    assert recipe.recipe(DIGEST, of, "a:2").digest != first.digest
    bundle(tmp_path, "python: {requirements: [x]}\n")
    assert recipe.recipe(DIGEST, of, "a:1").digest != first.digest


@pytest.mark.parametrize("base", ["a\nRUN evil", "a b", "$X", "", "-a", "a AS b"])
def test_a_base_image_is_a_name_and_nothing_else(tmp_path: Path, base: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="is not an image's name"):
        recipe.recipe(DIGEST, bundle(tmp_path), base)


def test_platform_packages_are_those_of_the_platform(tmp_path: Path) -> None:
    of = bundle(tmp_path, "python: {platform_packages: [psutil]}\n")
    version = importlib.metadata.version("psutil")
    assert f'"/agent/deps", "--no-deps", "psutil=={version}"]' in recipe.recipe(DIGEST, of, "a:1").dockerfile
    for wrong in ("uapi-tests-none", "--index-url=https://example.com"):
        bundle(tmp_path, f"python: {{platform_packages: ['{wrong}']}}\n")
        with pytest.raises(errors.FailedPrecondition, match="the platform has no package"):
            recipe.recipe(DIGEST, of, "a:1")


def test_the_context_is_the_same_bytes_and_holds_what_a_worker_needs(tmp_path: Path) -> None:
    of = bundle(tmp_path)
    contexts = []
    for _ in range(2):
        stream = io.BytesIO()
        recipe.recipe(DIGEST, of, "a:1").write(stream)
        contexts.append(stream.getvalue())
        (of / "app" / "m.py").touch()
    assert contexts[0] == contexts[1]
    with tarfile.open(fileobj=io.BytesIO(contexts[0])) as archive:
        members = archive.getmembers()
    assert {(member.mtime, member.uid, member.gid) for member in members} == {(0, 0, 0)}
    names = [member.name for member in members]
    assert len(names) == len(set(names))
    code = "platform/opt/agentruntime/code"
    assert {f"{code}/agent_worker/container.py", f"{code}/agentruntime/_proto/uapi/v1/agent_pool_pb2.py"} <= set(
        names
    )
    assert {"Dockerfile", "agent/agent/app/m.py", "installer/opt/agentruntime/install.py"} <= set(names)
    # Engines give directories that are not named the time of day.
    assert {str(Path(name).parent) for name in names} <= {*names, "."}
    assert not [name for name in names if "/cli/" in name or "/builtin/" in name]


def test_workers_packages_are_closed_and_enough() -> None:
    packages = {canonicalize_name(name) for name in recipe.WORKER_PACKAGES}
    for package in packages:
        for text in importlib.metadata.requires(package) or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                assert canonicalize_name(needed.name) in packages, package
    # What a worker imports is of these, or of nobody: structlog takes rich where it is.
    of = importlib.metadata.packages_distributions()
    kept = {module for module, names in of.items() if {canonicalize_name(name) for name in names} & packages}
    others = sorted(of.keys() - kept - {"agentruntime", "agent_worker", "agent_pool", "uapi_gateway"})
    program = f"""
import sys
for name in {others!r}:
    sys.modules[name] = None
import agent_worker.container, agent_worker.text_generation, agentruntime.client, agentruntime.agent
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_built_in_agents_can_be_made(tmp_path: Path) -> None:
    for name, directory in builtin.projects().items():
        place = tmp_path / name
        place.mkdir()
        (place / "app").symlink_to(directory)
        assert recipe.recipe(DIGEST, place, "a:1").dockerfile.startswith("FROM a:1\n")


def test_the_installer_leaves_the_same_bytes(tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        place = tmp_path / "target" / "code"
        place.mkdir(parents=True)
        (place / "m.py").write_text("def f():\n    return 1\n")
        (place / "broken.py").write_text("print 'of another Python'\n")
        container_install.main(place, [])
        found.append({path.name: path.read_bytes() for path in place.rglob("*") if path.is_file()})
        assert {path.stat().st_mtime for path in [place, *place.rglob("*")]} == {0}
        shutil.rmtree(place)
    assert found[0] == found[1]
    assert any(name.endswith(".pyc") for name in found[0])
