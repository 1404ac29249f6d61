"""`agent build`."""

import tarfile
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import IO, Annotated

import typer

from agentruntime import errors, names
from agentruntime._proto.uapi.v1 import image_service_pb2 as image_pb2
from agentruntime.cli import connection, output, platform
from agentruntime.client.sync import Client
from agentruntime.home import Home
from agentruntime.listening import Listen
from agentruntime.manifest import AgentManifest
from agentruntime.packing import left_out

# What the service takes in one message.
_CHUNK_BYTES = 2**20
# Requirements may have to be downloaded and compiled.
_TIMEOUT_S = 1800.0


def command(
    path: Annotated[Path, typer.Argument(help="The project's folder, which holds agent.yaml.")],
    tag: Annotated[
        str | None, typer.Option("--tag", "-t", help="my-agent:1.2.0; name and version of agent.yaml by default.")
    ] = None,
    container: Annotated[
        bool, typer.Option("--container", help="Also make a container image of it, under the same name.")
    ] = False,
    show_dockerfile: Annotated[
        bool, typer.Option("--show-dockerfile", help="Print the Dockerfile by which container images of it are made.")
    ] = False,
    format_: output.Output = None,
) -> None:
    """Build an image of a project.

    Starts the platform if none runs. Left out: version control, virtual environments, caches, .env files. A container
    image is also made without --container, when a container is first started of the image.
    """
    if not path.is_dir():
        raise errors.InvalidArgument(f"{path} is no folder; give the project's folder, like `agent build .`")
    AgentManifest.load(path)
    if tag is not None:
        names.ImageReference.parse(tag)
    settings = connection.config()
    if platform.is_local(settings):
        with output.progress("starting the platform"):
            platform.start(Home.default(), Listen())
    as_json = output.wants_json(format_)
    with platform.connect(settings) as client:
        image = build(client, path, tag or "", quiet=as_json, container=container)
        dockerfile = _dockerfile(client, image) if show_dockerfile else ""
    if as_json:
        output.print_json(output.as_data(image) | ({"dockerfile": dockerfile} if show_dockerfile else {}))
        return
    if show_dockerfile:
        # Alone on stdout, so that it can be kept.
        output.note(f"built {image.reference} ({image.digest})")
        print(dockerfile, end="")
        return
    print(f"built {image.reference} ({image.digest})")
    if image.container_image:
        print(f"container image {image.reference} ({image.container_image})")
    print(f"Run it:  agent run {image.reference}")


def _dockerfile(client: Client, image: image_pb2.Image) -> str:
    return client.images.GetDockerfile(image_pb2.GetDockerfileRequest(reference=image.reference)).dockerfile


def build(
    client: Client,
    project: Path,
    reference: str,
    *,
    quiet: bool,
    keep_requirements: bool = False,
    container: bool = False,
) -> image_pb2.Image:
    """Builds an image of a project, under agent.yaml's name and version unless there is a reference.

    Args:
        client: a client of the platform.
        project: its folder.
        reference: "name:tag", or "".
        quiet: without what the platform says meanwhile.
        keep_requirements: those that are installed already for that reference are good enough.
        container: also makes a container image of it.

    Raises:
        InvalidArgument: a module of it is no Python, or a file cannot be read.
        AgentError: what the platform says of it.
    """
    image = image_pb2.Image()
    with tempfile.TemporaryFile() as archive:
        pack(project, archive)
        archive.seek(0)
        spec = image_pb2.BuildSpec(reference=reference, keep_requirements=keep_requirements, container=container)
        for response in client.images.BuildImage(requests(spec, archive), timeout=_TIMEOUT_S):
            if response.WhichOneof("event") == "image":
                image = response.image
            elif not quiet:
                output.note(response.progress)
    return image


def requests(spec: image_pb2.BuildSpec, archive: IO[bytes]) -> Iterator[image_pb2.BuildImageRequest]:
    """What `BuildImage` is sent: the spec, then the archive in pieces."""
    yield image_pb2.BuildImageRequest(spec=spec)
    while chunk := archive.read(_CHUNK_BYTES):
        yield image_pb2.BuildImageRequest(chunk=chunk)


def pack(project: Path, archive: IO[bytes]) -> None:
    """Writes the project as a tar that is the same for the same files, whoever packs it and when.

    Raises:
        InvalidArgument: a file cannot be read, or is a module that Python cannot compile.
    """
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in _files(project):
            try:
                info = tar.gettarinfo(path, arcname=path.relative_to(project).as_posix())
                if info is None:  # a socket
                    continue
                info.uid = info.gid = 0
                info.uname = info.gname = ""
                info.mtime = 0
                info.mode = 0o755 if info.isdir() or info.mode & 0o100 else 0o644
                if info.isreg() or info.islnk():
                    if path.suffix == ".py":
                        check_syntax(path, path.relative_to(project))
                    # Hard links become files of their own: tar would refer to a name that may be left out.
                    info.type, info.linkname, info.size = tarfile.REGTYPE, "", path.stat().st_size
                    with path.open("rb") as content:
                        tar.addfile(info, content)
                elif info.isdir() or info.issym():
                    tar.addfile(info)
            except OSError as error:
                raise errors.InvalidArgument(f"cannot read {path}: {error.strerror}") from None


def check_syntax(path: Path, name: PurePath) -> None:
    """Raises InvalidArgument with file and line if Python cannot compile a module; it is called `name` then."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(path.read_bytes(), str(name), "exec", dont_inherit=True)
    except SyntaxError as error:
        shown = "".join(traceback.format_exception_only(error)).rstrip()
        raise errors.InvalidArgument(f"{name}, line {error.lineno}: {error.msg}\n{shown}") from None
    except ValueError as error:
        raise errors.InvalidArgument(f"{name} is no Python module: {error}") from None


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if left_out(PurePath(path.name)):
            continue
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
