"""Signatures beside an image: in the store, with it for as long as it is there, and nothing that is none."""

import base64
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from agentruntime import errors
from agentruntime.names import ImageReference
from agentruntime.signing import MOST_SIGNATURES, Claim, PrivateKey, Signature

from agent_pool.images import signatures
from agent_pool.images.build import pack
from agent_pool.images.layout import CONFIG_TYPE, MANIFEST_TYPE, ImageLayout, StoredImage

KEY = PrivateKey.generate()


@pytest.fixture
def store(tmp_path: Path) -> ImageLayout:
    made = ImageLayout(tmp_path / "images")
    made.create()
    return made


def stored(store: ImageLayout, tag: str = "my-agent:1", text: str = "x") -> StoredImage:
    """An image of one file."""
    directory = store.blob_path("sha256:" + "0" * 64).parents[2].parent / f"project-{text}"
    directory.mkdir(exist_ok=True)
    (directory / "file").write_text(text)
    layer = pack(store, directory, "app")
    config = b"{}"
    manifest = {
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": store.add_blob(config), "size": len(config)},
        "layers": [layer.descriptor()],
    }
    return store.tag(ImageReference.parse(tag), store.add_blob(json.dumps(manifest).encode()), datetime.now(UTC))


def blobs(store: ImageLayout) -> set[str]:
    return {path.name for path in store.blob_path("sha256:" + "0" * 64).parent.iterdir()}


def test_they_stay_with_the_image_and_go_with_it(store: ImageLayout) -> None:
    image, other = stored(store), stored(store, "other:1", "y")
    before = blobs(store)
    first, second = KEY.sign(Claim("my-agent", image.digest)), KEY.sign(Claim("other", image.digest))
    store.add_signatures(image.digest, [first])
    store.add_signatures(image.digest, [first, second])
    assert (store.signatures(image.digest), store.signatures(other.digest)) == ([first, second], [])
    # As other tools find them: an artifact whose subject is the image.
    (entry,) = store._signature_entries()
    manifest = store.manifest(entry["digest"])
    assert manifest["subject"]["digest"] == image.digest
    assert entry["artifactType"] == manifest["artifactType"] == signatures.ARTIFACT_TYPE

    store.tag(ImageReference.parse("again:1"), image.digest, image.created_at)
    store.remove(ImageReference.parse("my-agent:1"))
    store.keep_signatures({image.digest, other.digest})
    assert len(store.signatures(image.digest)) == 2
    store.remove(ImageReference.parse("again:1"))
    store.keep_signatures({other.digest})
    assert store.signatures(image.digest) == []
    assert blobs(store) < before


def test_there_is_an_end_to_their_number(store: ImageLayout) -> None:
    image = stored(store)
    many = [KEY.sign(Claim(f"my-agent-{n}", image.digest)) for n in range(MOST_SIGNATURES + 1)]
    store.add_signatures(image.digest, many[:-1])
    with pytest.raises(errors.ResourceExhausted, match="more than 32"):
        store.add_signatures(image.digest, many[-1:])
    assert store.signatures(image.digest) == many[:-1]


def test_damaged_ones_count_as_none(store: ImageLayout) -> None:
    image = stored(store)
    signed = KEY.sign(Claim("my-agent", image.digest))
    store.add_signatures(image.digest, [signed])
    store.blob_path(signatures.digest_of(signed.payload)).write_bytes(b"other")
    assert store.signatures(image.digest) == []
    # And are mended by signing again.
    store.add_signatures(image.digest, [signed])
    assert store.signatures(image.digest) == [signed]


def test_only_an_image_s_own_may_be_put_there() -> None:
    digest = "sha256:" + "ab" * 32
    signed = KEY.sign(Claim("my-agent", digest))
    signatures.check(signed, digest)
    for wrong in (
        KEY.sign(Claim("my-agent", "sha256:" + "cd" * 32)),
        Signature(b"{}", signed.value),
        Signature(signed.payload, b""),
        Signature(signed.payload, b"x" * 257),
    ):
        with pytest.raises(errors.InvalidArgument):
            signatures.check(wrong, digest)


def test_what_others_put_into_a_manifest_stays_and_does_not_count() -> None:
    signed = KEY.sign(Claim("my-agent", "sha256:" + "ab" * 32))
    ours = signatures.layer(signed)
    strange = [
        {**ours, "mediaType": "application/vnd.dsse.envelope.v1+json"},
        {**ours, "annotations": {}},
        {**ours, "annotations": {signatures._SIGNATURE: "no base64!"}},
        {**ours, "annotations": {signatures._SIGNATURE: base64.b64encode(b"x" * 300).decode()}},
        {**ours, "size": 2**20},
    ]
    content, _ = signatures.manifest({"digest": "sha256:" + "ab" * 32}, [*strange, {**ours, "note": "kept"}])
    described = signatures.layers(content)
    assert signatures.values(described) == [(ours["digest"], signed.value)]
    assert signatures.united(described, [signed]) == described
    assert described[-1]["note"] == "kept"
    for wrong in (b"", b"[]", b"{}", content.replace(b'"layers"', b'"other"'), b"[" * 10_000):
        with pytest.raises(errors.InvalidArgument):
            signatures.layers(wrong)
