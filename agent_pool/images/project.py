"""A project as it comes in, a tar that nobody trusts yet, checked and written to a directory.

Refused: paths that leave the project, absolute ones, links that point out of it, devices and other special
files, a path twice, and more than 1 GiB in all. Left out: what `agentruntime.packing` lists.
"""

import errno
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from agentruntime import errors, units
from agentruntime.manifest import FILE_NAME, AgentManifest
from agentruntime.packing import left_out

from agent_pool.images import tar

LARGEST_BYTES = 2**30
MOST_FILES = 50_000
# Of what pip installs for it, compressed or not: some have gigabytes for GPUs.
LARGEST_REQUIREMENTS_BYTES = 16 * 2**30
MOST_REQUIREMENTS_FILES = 500_000


def extract(stream: IO[bytes], target: Path) -> None:
    """Writes the project in an uncompressed tar below `target`, which is empty.

    Raises:
        InvalidArgument: it is no tar, or holds what is refused.
        ResourceExhausted: it is too large.
    """
    total_bytes = 0
    seen: set[PurePosixPath] = set()
    links: list[PurePosixPath] = []
    for archive, member in tar.members(stream):
        path = checked_path(member.name)
        if path == PurePosixPath(".") or left_out(path):
            continue
        total_bytes += member.size
        if total_bytes > LARGEST_BYTES or len(seen) >= MOST_FILES:
            raise errors.ResourceExhausted(
                f"the project is larger than {units.format_size(LARGEST_BYTES)} or {MOST_FILES} files; "
                "leave data out of the image"
            )
        if path in seen and not member.isdir():
            raise errors.InvalidArgument(f"the project holds '{path}' twice")
        seen.add(path)
        if member.issym():
            links.append(path)
        write_member(archive, member, path, target)
    check_ways(target, links)


def checked_path(name: str) -> PurePosixPath:
    """A member's path, relative and inside.

    Raises:
        InvalidArgument: it is absolute or leads out, or is no text.
    """
    if not _is_text(name):
        raise errors.InvalidArgument(f"'{tar.shown(name)}' is not UTF-8; give that file another name")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or not name:
        raise errors.InvalidArgument(f"'{name}' leads out of the project; only paths inside it can be packed")
    return path


def write_member(archive: tarfile.TarFile, member: tarfile.TarInfo, path: PurePosixPath, target: Path) -> None:
    """Writes one member of a tar, which nobody trusts, at a checked path below `target`.

    Raises:
        InvalidArgument: it is a device, a hard link, a link that points out, lies behind a link, or is there already.
    """
    try:
        _no_link_on_the_way(target, path)
        _write(archive, member, path, target / path)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise errors.InvalidArgument(f"'{path}' is there twice, or lies below a file") from None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise errors.InvalidArgument(f"'{tar.shown(str(path))}…' is too long for a name") from None


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, path: PurePosixPath, place: Path) -> None:
    if member.isdir():
        place.mkdir(parents=True, exist_ok=True)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    if member.issym():
        _check_link(member, path)
        place.symlink_to(member.linkname)
        return
    with place.open("xb") as out:
        out.writelines(tar.content(archive, member))
    place.chmod(0o755 if member.mode & 0o100 else 0o644)


def _no_link_on_the_way(target: Path, path: PurePosixPath) -> None:
    for parent in path.parents:
        if (target / parent).is_symlink():
            raise errors.InvalidArgument(f"'{path}' lies behind the link '{parent}'")


def _check_link(member: tarfile.TarInfo, path: PurePosixPath) -> None:
    if not member.linkname or not _is_text(member.linkname):
        raise errors.InvalidArgument(f"the link '{path}' points to nothing that has a name")
    depth = len(path.parent.parts)
    destination = PurePosixPath(member.linkname)
    for part in destination.parts:
        depth += -1 if part == ".." else 1
        if depth < 0 or destination.is_absolute():
            raise errors.InvalidArgument(f"the link '{path}' points out of the project, to '{member.linkname}'")


def _is_text(name: str) -> bool:
    """Whether a name is UTF-8, and not bytes that Python made half a character of."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_ways(target: Path, links: Iterable[PurePosixPath]) -> None:
    """Checks all links of a tree when it is whole: none leads over another one, where `..` is not what it seems.

    Raises:
        InvalidArgument: one does.
    """
    for link in links:
        way = target / link.parent
        for part in (target / link).readlink().parts[:-1]:
            way = way.parent if part == ".." else way / part
            if way.is_symlink():
                raise errors.InvalidArgument(f"the way of the link '{link}' leads over another link")


def load_manifest(project: Path) -> AgentManifest:
    """The project's agent.yaml, which is a file and no link to one.

    Raises:
        InvalidManifest: it is missing or wrong.
    """
    place = project / FILE_NAME
    if place.is_symlink():
        raise errors.InvalidManifest(f"the project's {FILE_NAME} is a link; put the file there")
    if not place.is_file():
        raise errors.InvalidManifest(f"the project has no {FILE_NAME}; `agent init` makes one")
    return AgentManifest.load(project)


def checked_manifest(project: Path) -> AgentManifest:
    """The project's agent.yaml, its entrypoint's module found.

    Raises:
        InvalidManifest: agent.yaml is missing or wrong, or names a module that is not there.
    """
    manifest = load_manifest(project)
    module = manifest.entrypoint.partition(":")[0]
    place = project.joinpath(*module.split("."))
    if not place.with_suffix(".py").is_file() and not (place / "__init__.py").is_file():
        raise errors.InvalidManifest(
            f"{FILE_NAME}: entrypoint: there is no module '{module}' in the project "
            f"(no {module.replace('.', '/')}.py)"
        )
    return manifest


def files(root: Path) -> Iterator[PurePosixPath]:
    """All below `root`, directories included, sorted by path."""
    return (PurePosixPath(path.relative_to(root).as_posix()) for path in sorted(root.rglob("*")))
