"""Images in a real registry: there and back, with a login, and nothing that was tampered with."""

import base64
import hashlib
import io
import json
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
import requests
from agentruntime import errors
from agentruntime.home import Home
from agentruntime.names import ImageReference
from agentruntime.signing import Claim, PrivateKey

from agent_pool.images import registry as distribution
from agent_pool.images.catalog import Catalog
from agent_pool.images.signatures import tag_of
from agent_pool.images.trust import Trust
from tests import registry
from tests.agent_pool.harness import project
from tests.agent_pool.images.test_registry_session import recording
from tests.registry import Registry

pytestmark = pytest.mark.integration


async def catalog_in(directory: Path) -> Catalog:
    home = Home(directory)
    for part in (home.images, home.bundles, home.state):
        part.mkdir(parents=True)
    made = Catalog(home, [], set)
    await made.prepare()
    return made


@pytest.fixture
async def here(tmp_path: Path) -> Catalog:
    return await catalog_in(tmp_path / "here")


@pytest.fixture
async def elsewhere(tmp_path: Path) -> Catalog:
    return await catalog_in(tmp_path / "elsewhere")


async def built(catalog: Catalog, reference: str = "tester:1.0.0") -> str:
    return (await catalog.build(io.BytesIO(project("tester")), reference, print)).digest


async def test_there_and_back(here: Catalog, elsewhere: Catalog, tmp_path: Path) -> None:
    said: list[str] = []
    digest = await built(here)
    (tmp_path / "r").mkdir()
    with registry.serving(tmp_path / "r") as there:
        name = f"{there.host}/team/sub/tester"
        assert await here.push("tester:1.0.0", f"{name}:1.2.0", said.append) == digest
        assert [line.split()[0] for line in said] == ["sending", "sending"]
        # Under a tag, too; what is there is not sent again.
        await here.tag("tester:1.0.0", f"{name}:other")
        said.clear()
        assert await here.push(f"{name}:other", "", said.append) == digest
        assert all("is there already" in line for line in said)

        pulled = await elsewhere.pull(f"{name}:1.2.0", said.append)
        assert (pulled.reference, pulled.digest) == (f"{name}:1.2.0", digest)
        opened = await elsewhere.open(f"{name}:1.2.0")
        assert (opened.bundle / "app" / "tester.py").is_file()
        assert f"{name}:1.2.0" in [image.reference for image in elsewhere.images()]

        # As `agent run` finds it: here already, or there; by its digest, too.
        assert await elsewhere.obtain(f"{name}:1.2.0") == "local"
        await elsewhere.remove(f"{name}:1.2.0")
        assert await elsewhere.obtain(f"{name}@{digest}") == there.host
        assert elsewhere.find(f"{name}@{digest}").digest == digest
        await elsewhere.remove(f"{name}@{digest}")
        with pytest.raises(errors.ImageNotFound, match=f"{there.host} has no {name}:none"):
            await elsewhere.obtain(f"{name}:none")
        with pytest.raises(errors.ImageNotFound, match="there is"):
            await elsewhere.obtain("echo:none")
        with pytest.raises(errors.InvalidArgument, match="names no registry"):
            await elsewhere.pull("team/tester:1", print)
    with pytest.raises(errors.Unavailable, match="does not answer"):
        await elsewhere.pull(f"{name}:1.2.0", print)


async def test_what_was_tampered_with_is_refused_and_not_kept(
    here: Catalog, elsewhere: Catalog, tmp_path: Path
) -> None:
    digest = await built(here)
    (tmp_path / "r").mkdir()
    before = sorted(path.name for path in (tmp_path / "elsewhere" / "images").rglob("*"))
    with registry.serving(tmp_path / "r") as there:
        name = f"{there.host}/tester"
        await here.push("tester:1.0.0", f"{name}:1", print)
        manifest = json.loads(there.blob(digest).read_bytes())
        layer = there.blob(manifest["layers"][0]["digest"])
        whole = layer.read_bytes()
        for wrong in (whole[:-1] + bytes([whole[-1] ^ 1]), whole + b"more", whole[:-1]):
            layer.write_bytes(wrong)
            with pytest.raises((errors.DataLoss, errors.Unavailable)):
                await elsewhere.pull(f"{name}:1", print)
        layer.write_bytes(whole)
        # A manifest that is another than its digest, named by digest and by tag.
        there.blob(digest).write_bytes(json.dumps(manifest | {"annotations": {}}).encode())
        for reference in (f"{name}@{digest}", f"{name}:1"):
            with pytest.raises((errors.DataLoss, errors.FailedPrecondition, errors.Unavailable)):
                await elsewhere.pull(reference, print)
    assert sorted(path.name for path in (tmp_path / "elsewhere" / "images").rglob("*")) == before


async def test_other_images_are_no_agents(elsewhere: Catalog, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    with registry.serving(tmp_path / "r") as there:
        config = json.dumps({"os": "linux", "config": {}}).encode()
        for content in (config, b"layer"):
            put_blob(there, content)
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": described("application/vnd.oci.image.config.v1+json", config),
            "layers": [described("application/vnd.oci.image.layer.v1.tar+gzip", b"layer")],
        }
        answer = requests.put(
            f"http://{there.host}/v2/other/manifests/1",
            json.dumps(manifest),
            headers={"Content-Type": str(manifest["mediaType"])},
            timeout=10,
        )
        assert answer.ok, answer.text
        with pytest.raises(errors.FailedPrecondition, match="is no agent image"):
            await elsewhere.pull(f"{there.host}/other:1", print)


def described(kind: str, content: bytes) -> dict[str, object]:
    return {"mediaType": kind, "digest": digest_of(content), "size": len(content)}


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def put_blob(there: Registry, content: bytes) -> None:
    begun = requests.post(f"http://{there.host}/v2/other/blobs/uploads/", timeout=10)
    requests.put(begun.headers["Location"], content, params={"digest": digest_of(content)}, timeout=10)


CONFIG = described("application/vnd.oci.image.config.v1+json", b"{}")
LAYER = described("application/vnd.oci.image.layer.v1.tar+gzip", b"")


@pytest.mark.parametrize(
    ("config", "layers", "error"),
    [
        (CONFIG | {"size": 2**21}, [LAYER], errors.FailedPrecondition),
        (CONFIG, [LAYER] * 17, errors.FailedPrecondition),
        (CONFIG, [LAYER | {"size": 2**35}], errors.ResourceExhausted),
    ],
)
def test_too_large_ones_are_not_fetched(
    tmp_path: Path, config: dict[str, object], layers: list[dict[str, object]], error: type[errors.AgentError]
) -> None:
    manifest = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": layers}
    with recording(200, {}, json.dumps(manifest).encode()) as there, pytest.raises(error):
        distribution.pull(ImageReference.parse(f"{there.host}/x:1"), tmp_path, print, threading.Event())
    assert len(there.asked) == 1


async def test_a_deep_config_is_no_agent_s(elsewhere: Catalog, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    with registry.serving(tmp_path / "r") as there:
        config = b"[" * 200_000
        for content in (config, b"layer"):
            put_blob(there, content)
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": described("application/vnd.oci.image.config.v1+json", config),
            "layers": [described("application/vnd.oci.image.layer.v1.tar+gzip", b"layer")],
        }
        requests.put(
            f"http://{there.host}/v2/other/manifests/1",
            json.dumps(manifest),
            headers={"Content-Type": str(manifest["mediaType"])},
            timeout=10,
        ).raise_for_status()
        with pytest.raises(errors.FailedPrecondition, match="is no agent image"):
            await elsewhere.pull(f"{there.host}/other:1", print)


async def test_logins_are_docker_s(
    here: Catalog, elsewhere: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r").mkdir()
    config = tmp_path / "docker" / "config.json"
    config.parent.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(config.parent))
    await built(here)
    with registry.serving(tmp_path / "r", login=True) as there:
        name = f"{there.host}/tester:1"
        with pytest.raises(errors.Unauthenticated, match=f"`docker login {there.host}` first"):
            await here.push("tester:1.0.0", name, print)
        config.write_text(json.dumps({"auths": {there.host: {"auth": encoded(f"{registry.USER}:wrong")}}}))
        with pytest.raises(errors.Unauthenticated, match="as somebody who may"):
            await here.push("tester:1.0.0", name, print)
        config.write_text(
            json.dumps({"auths": {there.host: {"auth": encoded(f"{registry.USER}:{registry.PASSWORD}")}}})
        )
        await here.push("tester:1.0.0", name, print)

        # From a helper program.
        helper = tmp_path / "bin" / "docker-credential-tests"
        helper.parent.mkdir()
        helper.write_text(f'#!/bin/sh\necho \'{{"Username": "{registry.USER}", "Secret": "{registry.PASSWORD}"}}\'\n')
        helper.chmod(0o755)
        sh = Path(shutil.which("sh") or "/bin/sh")
        monkeypatch.setenv("PATH", f"{helper.parent}:{sh.parent}")
        config.write_text(json.dumps({"credHelpers": {there.host: "tests"}}))
        assert (await elsewhere.pull(name, print)).reference == name
        helper.write_text("#!/bin/sh\necho the keyring is locked; exit 1\n")
        with pytest.raises(errors.FailedPrecondition, match="keyring is locked"):
            await elsewhere.pull(name, print)


def encoded(pair: str) -> str:
    return base64.b64encode(pair.encode()).decode()


ACCEPT = {"Accept": "application/vnd.oci.image.manifest.v1+json"}


async def signed(catalog: Catalog, reference: str, key: PrivateKey) -> None:
    image = catalog.find(reference)
    claim = Claim(ImageReference.parse(reference).name, image.digest)
    await catalog.add_signature(reference, key.sign(claim))


def openssl_verifies(there: Registry, manifest: bytes, public: Path, directory: Path) -> bool:
    """Whether one of the signatures in a registry is a key's, as a program sees it that knows nothing of us."""
    done = []
    for layer in json.loads(manifest)["layers"]:
        payload, value = directory / "payload", directory / "value"
        payload.write_bytes(there.blob(layer["digest"]).read_bytes())
        value.write_bytes(base64.b64decode(layer["annotations"]["dev.cosignproject.cosign/signature"]))
        argv = ["openssl", "dgst", "-sha256", "-verify", str(public), "-signature", str(value), str(payload)]
        done.append(subprocess.run(argv, check=False, capture_output=True, timeout=30))
    return any(each.returncode == 0 for each in done)


async def test_signatures_travel_and_other_programs_verify_them(
    here: Catalog, elsewhere: Catalog, tmp_path: Path
) -> None:
    (tmp_path / "r").mkdir()
    release, second = PrivateKey.generate(), PrivateKey.generate()
    (tmp_path / "release.pub").write_bytes(release.public_pem())
    (tmp_path / "second.pub").write_bytes(second.public_pem())
    await built(here)
    with registry.serving(tmp_path / "r") as there:
        name = f"{there.host}/team/tester"
        await here.tag("tester:1.0.0", f"{name}:1")
        await signed(here, f"{name}:1", release)
        said: list[str] = []
        digest = await here.push(f"{name}:1", "", said.append)
        assert "sending 1 of its signatures" in said
        await here.push(f"{name}:1", "", said.append)
        assert said[-1] == "its signatures are there already"

        # Somebody else signs what they pulled; nothing of the first signature is lost.
        await elsewhere.pull(f"{name}:1", said.append)
        assert elsewhere.signatures(digest) == here.signatures(digest)
        await signed(elsewhere, f"{name}:1", second)
        await elsewhere.push(f"{name}:1", "", said.append)
        await here.pull(f"{name}:1", said.append)
        assert len(here.signatures(digest)) == 2

        stored = requests.get(
            f"http://{there.host}/v2/team/tester/manifests/{tag_of(digest)}", headers=ACCEPT, timeout=10
        )
        (tmp_path / "stranger.pub").write_bytes(PrivateKey.generate().public_pem())
        for name, good in (("release", True), ("second", True), ("stranger", False)):
            assert openssl_verifies(there, stored.content, tmp_path / f"{name}.pub", tmp_path) is good


async def test_what_is_not_signed_by_who_counts_does_not_run(
    here: Catalog, elsewhere: Catalog, tmp_path: Path
) -> None:
    (tmp_path / "r").mkdir()
    release, stranger = PrivateKey.generate(), PrivateKey.generate()
    (tmp_path / "release.pub").write_bytes(release.public_pem())
    policy = Catalog(Home(tmp_path / "elsewhere"), [], set, trust=Trust(tmp_path / "release.pub", required=True))

    async def refusal(reference: str) -> str:
        await policy.pull(reference, print)
        image = policy.find(reference)
        with pytest.raises(errors.ImageNotTrusted) as raised:
            policy.check_trust(image.reference, image.digest)
        return raised.value.message

    await built(here)
    other = (await here.build(io.BytesIO(project("tester", body="x = 1")), "tester:2.0.0", print)).digest
    with registry.serving(tmp_path / "r") as there:
        name = f"{there.host}/tester"
        for tag in ("1.0.0", "2.0.0"):
            await here.tag(f"tester:{tag}", f"{name}:{tag}")
        await signed(here, f"{name}:1.0.0", release)
        await signed(here, f"{name}:2.0.0", stranger)
        digest = await here.push(f"{name}:1.0.0", "", print)
        await here.push(f"{name}:2.0.0", "", print)
        await policy.pull(f"{name}:1.0.0", print)
        policy.check_trust(f"{name}:1.0.0", digest)
        assert "by none of the trusted keys" in await refusal(f"{name}:2.0.0")

        # The tag that was signed, moved to something else.
        await here.push(f"{name}:2.0.0", f"{name}:1.0.0", print)
        assert "by none of the trusted keys" in await refusal(f"{name}:1.0.0")
        # The signature of another image, put beside this one.
        at = f"http://{there.host}/v2/tester/manifests/"
        copied = requests.get(at + tag_of(digest), headers=ACCEPT, timeout=10)
        copied.raise_for_status()
        put = requests.put(at + tag_of(other), copied.content, headers={"Content-Type": ACCEPT["Accept"]}, timeout=10)
        put.raise_for_status()
        await policy.remove(f"{name}@{other}")
        assert "has a signature that is of another image" in await refusal(f"{name}:1.0.0")
        # The same image by a name for which nobody signed it.
        await here.push(f"{name}@{digest}", f"{there.host}/wanted:1", print)
        assert f"is signed as '{name}'" in await refusal(f"{there.host}/wanted:1")
        # Something else than signatures.
        put = requests.put(
            at + tag_of(other),
            there.blob(digest).read_bytes(),
            headers={"Content-Type": ACCEPT["Accept"]},
            timeout=10,
        )
        put.raise_for_status()
        await policy.remove(f"{name}@{other}")
        assert "is not signed" in await refusal(f"{name}:1.0.0")
    # What came with the platform is trusted, what is built of the same name is not.
    policy.check_trust("echo", policy.find("echo").digest)
    await policy.build(io.BytesIO(project("tester")), "echo:latest", print)
    with pytest.raises(errors.ImageNotTrusted):
        policy.check_trust("echo", policy.find("echo").digest)
