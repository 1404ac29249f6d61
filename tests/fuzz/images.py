"""What images are made of: tars, layouts, manifests, signatures, and what a registry answers."""

import gzip
import io
import json
import os
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import requests
from agentruntime import errors
from agentruntime.names import ImageReference
from agentruntime.signing import Claim
from requests.adapters import BaseAdapter
from urllib3 import HTTPResponse

from agent_pool.images import project, registry, signatures, unpack
from agent_pool.images.layout import CONFIG_TYPE, LAYER_TYPE, MANIFEST_TYPE, ImageLayout
from agent_pool.images.registry_session import RegistrySession
from tests.fuzz.target import Target, is_said

# Small, so that what is larger is seen soon.
_LIMITS: dict[str, Any] = {
    "LARGEST_BYTES": 2**20,
    "MOST_FILES": 50,
    "LARGEST_REQUIREMENTS_BYTES": 2**20,
    "MOST_REQUIREMENTS_FILES": 50,
}
_KINDS = {
    b"f": tarfile.REGTYPE, b"d": tarfile.DIRTYPE, b"l": tarfile.SYMTYPE, b"h": tarfile.LNKTYPE,
    b"p": tarfile.FIFOTYPE, b"c": tarfile.CHRTYPE, b"s": tarfile.GNUTYPE_SPARSE, b"x": tarfile.XHDTYPE,
}  # fmt: skip
_REFERENCE = ImageReference.parse("registry.example.com/team/my-agent:1")


@contextmanager
def _cell() -> Iterator[Path]:
    """A directory to write in, and proof that nothing was written beside it."""
    with tempfile.TemporaryDirectory() as top, patch.multiple(project, **_LIMITS):
        inside, outside = Path(top) / "in", Path(top) / "out"
        inside.mkdir()
        outside.mkdir()
        (outside / "file").write_text("as it was")
        yield inside
        assert {path.name for path in Path(top).iterdir()} == {"in", "out"}
        assert [path.name for path in outside.iterdir()] == ["file"]
        assert (outside / "file").read_text() == "as it was"


def _check_tree(root: Path) -> None:
    """Nothing in it leads out, and it holds no more than is allowed."""
    total = 0
    for directory, below, files in os.walk(root):
        for each in (*below, *files):
            path = Path(directory, each)
            assert path.is_symlink() or path.is_file() or path.is_dir()
            mode = path.lstat().st_mode
            assert not mode & 0o7000
            if path.is_symlink():
                assert Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)), path
            elif path.is_file():
                total += path.stat().st_size
    assert total <= 2 * _LIMITS["LARGEST_BYTES"]


def _extract(archive: bytes) -> None:
    with _cell() as inside:
        target = inside / "project"
        target.mkdir()
        try:
            project.extract(io.BytesIO(archive), target)
        except (errors.InvalidArgument, errors.ResourceExhausted) as error:
            is_said(error.message)
            return
        _check_tree(target)


def project_tar(data: bytes) -> None:
    """A project as it comes: unpacked below its directory, or refused."""
    _extract(data)


def project_members(data: bytes) -> None:
    """The same, of a tar that is one. A line for each member: its kind, name, and its link or content after a tab."""
    _extract(_tar(data))


def layers(data: bytes) -> None:
    """An image's layers: unpacked below the bundles, or DataLoss, whatever its tar or its gzip holds."""
    archive = data if data[:2] == b"\x1f\x8b" else gzip.compress(data if data[257:262] == b"ustar" else _tar(data), 1)
    with _cell() as inside:
        store = ImageLayout(inside / "images")
        store.create()
        config = b"{}"
        manifest = {
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": store.add_blob(config), "size": len(config)},
            "layers": [{"mediaType": LAYER_TYPE, "digest": store.add_blob(archive), "size": len(archive)}],
        }
        digest = store.add_blob(json.dumps(manifest).encode())
        bundles = inside / "bundles"
        bundles.mkdir()
        try:
            bundle = unpack.unpack(store, digest, bundles)
        except (errors.DataLoss, errors.ResourceExhausted) as error:
            is_said(error.message)
            assert list(bundles.iterdir()) == []
            return
        _check_tree(bundle)


def _tar(data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as archive:
        for line in data.split(b"\n")[:60]:
            kind, (name, _, rest) = _KINDS.get(line[:1], tarfile.REGTYPE), line[1:].partition(b"\t")
            member = tarfile.TarInfo(name.decode(errors="surrogateescape"))
            member.type, member.mode = kind, 0o7777
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                member.linkname = rest.decode(errors="surrogateescape")
                rest = b""
            member.size = len(rest)
            archive.addfile(member, io.BytesIO(rest))
    return out.getvalue()


def layout(data: bytes) -> None:
    """Files of the store as another program may have left them: images are listed, or left out with a word.

    The input is index.json, a manifest and the manifest of signatures, with NUL between them.
    """
    index, manifest, signed = [*data.split(b"\0"), b"", b""][:3]
    with _cell() as inside:
        store = ImageLayout(inside / "images")
        store.create()
        names = {b"$M": store.add_blob(manifest), b"$S": store.add_blob(signed)}
        for mark, digest in names.items():
            index = index.replace(mark, digest.encode())
        (inside / "images" / "index.json").write_bytes(index)
        acts: list[Callable[[], object]] = [
            store.images,
            lambda: store.find(ImageReference.parse("my-agent:1")),
            lambda: store.signatures(names[b"$M"]),
            lambda: store.is_built_in("my-agent", names[b"$M"]),
            lambda: unpack.unpack(store, names[b"$M"], inside),
            lambda: store.keep_signatures(set()),
            store.collect_garbage,
        ]
        for act in acts:
            try:
                act()
            except (errors.DataLoss, errors.ImageNotFound, errors.InvalidArgument) as error:
                is_said(error.message)


def manifests(data: bytes) -> None:
    """What a registry may send as an image's manifest, its configuration, its signatures and their payloads."""
    for act in (
        lambda: registry._parsed(data, "it"),
        lambda: signatures.layers(data),
        lambda: Claim.parse(data),
    ):
        try:
            act()
        except (errors.FailedPrecondition, errors.InvalidArgument) as error:
            is_said(error.message)
    try:
        described = signatures.layers(data)
    except errors.InvalidArgument:
        return
    content, _ = signatures.manifest({"digest": "sha256:" + "0" * 64}, described)
    assert signatures.layers(content) == described
    assert signatures.united(described, []) == described


class _Answers(BaseAdapter):
    """A registry that gives one answer to everything."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        super().__init__()
        self._answer = status, headers, body

    def send(self, request: requests.PreparedRequest, *args: object, **kwargs: object) -> requests.Response:
        status, headers, body = self._answer
        raw = HTTPResponse(io.BytesIO(body), headers, status, preload_content=False)
        return requests.adapters.HTTPAdapter().build_response(request, raw)

    def close(self) -> None:
        """Nothing is open."""


def registry_answers(data: bytes) -> None:
    """Whatever a registry answers is an image, or one of the documented errors; nothing is left of what was fetched.

    The input is the status, lines of headers, an empty line and a body.
    """
    head, _, body = data.partition(b"\n\n")
    first, *rest = head.split(b"\n")
    status = int(first[:3]) if first[:3].isdigit() and int(first[:3]) >= 100 else 200
    headers = {}
    for line in rest[:20]:
        key, _, value = line.decode("latin-1").partition(":")
        headers[key.strip() or "x"] = value.strip()
    answers = _Answers(status, headers, body)

    def session(of: ImageReference, actions: str) -> RegistrySession:
        made = RegistrySession(of, actions)
        made._session.mount("https://", answers)
        made._session.mount("http://", answers)
        return made

    with (
        _cell() as inside,
        patch.object(registry, "RegistrySession", session),
        patch("agent_pool.images.registry_session.credentials", lambda _: {"username": "u", "password": "p"}),
    ):
        scratch = inside / "scratch"
        scratch.mkdir()
        try:
            registry.pull(_REFERENCE, scratch, lambda _: None, threading.Event())
        except errors.AgentError as error:
            is_said(error.message)
        try:
            # Signatures alone, as beside an image that came whole.
            with session(_REFERENCE, "pull") as asked:
                registry._fetch_signatures(asked, _REFERENCE, "sha256:" + "0" * 64, lambda _: None)
        except errors.AgentError as error:
            is_said(error.message)


_TAR = (b"ustar\x0000", b"\n", b"\t", b"l../", b"d", b"f", b"l", b"../", b"/", b"app/", b"deps/")
_OCI = (
    b'"digest":"',
    b"sha256:",
    b'"mediaType":"',
    b'"layers":[',
    b'"annotations":{',
    b'"size":',
    b"null",
    b"$M",
    b"$S",
)
TARGETS = [
    Target("project-tar", project_tar, _TAR),
    Target("project-members", project_members, _TAR),
    Target("layers", layers, _TAR),
    Target("layout", layout, _OCI),
    Target("manifests", manifests, _OCI),
    Target("registry-answers", registry_answers, (b"WWW-Authenticate:", b"Bearer realm=", b"Location:", *_OCI)),
]
