"""A Python base image without any registry: the running interpreter, the libraries it needs, pip and a shell.

Agents' container images are built upon it in the tests, on every machine, so that what the tests find does not depend
on what a registry has today.
"""

import hashlib
import importlib.metadata
import io
import os
import re
import shutil
import site
import ssl
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import docker

REPOSITORY = "agentruntime-tests-base"
_VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
# Of the standard library, what no worker imports; and Debian's mark against pip.
_LEFT_OUT = re.compile(
    r"/(site-packages|dist-packages|test|tests|idlelib|tkinter|turtledemo|lib2to3|ensurepip|EXTERNALLY-MANAGED)(/|$)"
    r"|/config-[^/]*/|\.a$|\.opt-\d\.pyc$"
)
_PROGRAMS = (
    "sh", "cat", "chmod", "chown", "cp", "echo", "env", "false", "id", "ln", "ls", "mkdir", "mv", "rm", "rmdir",
    "sleep", "touch", "true",
)  # fmt: skip
# Loaded by name at run time, so that ldd does not find them: what wheels are built against, and name resolution.
_BY_NAME = ("libdl.so.2", "libpthread.so.0", "librt.so.1", "libutil.so.1", "libresolv.so.2", "libnss_*.so.2")
# A program that makes whoever runs it root, if it may: for attempts to escape.
_RISING = "/usr/local/bin/rise"
_TEXTS = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "/etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "/etc/nsswitch.conf": "hosts: files dns\n",
}
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin",
    "LANG": "C.UTF-8",
    "SSL_CERT_FILE": _CERTIFICATES,
    "PIP_CERT": _CERTIFICATES,
}


@dataclass
class _Tree:
    """What will be in the image, by its path there."""

    files: dict[str, Path] = field(default_factory=dict)
    texts: dict[str, tuple[str, int]] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    def key(self) -> str:
        """Changes with the content. Bytecode is left out: Python writes it as it runs."""
        digest = hashlib.sha256(Path(__file__).read_bytes())
        for path, source in sorted(self.files.items()):
            if not path.endswith(".pyc"):
                status = source.stat()
                digest.update(f"{path} {status.st_mode:o} {status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]

    def write(self, archive: tarfile.TarFile) -> None:
        everything = self.files.keys() | self.texts.keys() | self.links.keys()
        parents = {str(parent) for path in everything for parent in Path(path).parents} - {"/"}
        for directory in sorted(parents | {"/dev", "/proc", "/root", "/run", "/sys", "/tmp", "/var/tmp"}):
            member = tarfile.TarInfo(directory)
            member.type, member.mode = tarfile.DIRTYPE, 0o1777 if directory.endswith("/tmp") else 0o755
            archive.addfile(member)
        for path, source in sorted(self.files.items()):
            member = tarfile.TarInfo(path)
            status = source.stat()
            # Bytecode names the time of its source, so files keep theirs.
            member.size, member.mtime = status.st_size, int(status.st_mtime)
            member.mode = 0o4755 if path == _RISING else 0o755 if status.st_mode & 0o100 else 0o644
            with source.open("rb") as content:
                archive.addfile(member, content)
        for path, (text, mode) in sorted(self.texts.items()):
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(text.encode()), mode
            archive.addfile(member, io.BytesIO(text.encode()))
        for path, target in sorted(self.links.items()):
            member = tarfile.TarInfo(path)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)


def ensure(client: docker.DockerClient) -> str:
    """The base image's reference; imports it if the engine does not have it."""
    tree = _tree()
    tag = tree.key()
    reference = f"{REPOSITORY}:{tag}"
    if client.images.list(name=reference):
        return reference
    with tempfile.NamedTemporaryFile(suffix=".tar") as packed:
        with tarfile.open(fileobj=packed, mode="w") as archive:
            tree.write(archive)
        packed.flush()
        changes = [f"ENV {name}={value}" for name, value in _ENVIRONMENT.items()] + ['CMD ["python3"]']
        client.api.import_image(packed.name, repository=REPOSITORY, tag=tag, changes=changes)
    return reference


def _tree() -> _Tree:
    tree = _Tree()
    interpreter = Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
    # Debian's Python looks for packages where it lies; any other finds its own from where it was put.
    prefix = "/usr" if sys.base_prefix == "/usr" else "/usr/local"
    library, there = Path(sysconfig.get_path("stdlib")), f"{prefix}/lib/{_VERSION}"
    tree.files[f"{prefix}/bin/{_VERSION}"] = interpreter
    tree.files |= {f"{there}{path}": source for path, source in _files_of(library)}
    tree.links |= {f"/usr/local/bin/{name}": f"{prefix}/bin/{_VERSION}" for name in ("python", "python3")}
    packages = f"/usr/local/lib/{_VERSION}/dist-packages" if prefix == "/usr" else f"{there}/site-packages"
    for file in importlib.metadata.distribution("pip").files or ():
        if not str(file).startswith("..") and file.suffix != ".pyc":
            tree.files[f"{packages}/{file}"] = Path(str(file.locate()))
    tree.texts["/usr/local/bin/pip"] = (
        "#!/usr/local/bin/python3\nimport sys\nfrom pip._internal.cli.main import main\nsys.exit(main())\n",
        0o755,
    )
    tree.texts |= {path: (text, 0o644) for path, text in _TEXTS.items()}
    tree.files[_CERTIFICATES] = _certificates()
    programs = {f"/bin/{name}": Path(os.path.realpath(path)) for name in _PROGRAMS if (path := shutil.which(name))}
    tree.files |= programs | {_RISING: programs["/bin/sleep"]}
    extensions = [*library.glob("lib-dynload/*.so"), *_extensions_of_a_worker()]
    tree.files |= _libraries([interpreter, *programs.values(), *extensions])
    return tree


def _files_of(library: Path) -> Iterator[tuple[str, Path]]:
    """The files of the standard library, by their path below it."""
    for directory, _, names in os.walk(library):
        for name in names:
            source = Path(directory, name)
            path = "/" + str(source.relative_to(library))
            if not _LEFT_OUT.search(path) and source.is_file():
                yield path, Path(os.path.realpath(source))


def _extensions_of_a_worker() -> list[Path]:
    """Compiled modules of the packages that a worker imports: what they link to must be there."""
    roots = [Path(root) for root in site.getsitepackages()]
    names = ("grpc/_cython/*.so", "google/_upb/*.so", "pydantic_core/*.so")
    return [path for root in roots for name in names for path in root.glob(name)]


def _libraries(binaries: Iterable[Path]) -> dict[str, Path]:
    """The shared libraries that these load, by the path at which the dynamic linker of the image finds them."""
    said = subprocess.run(["ldd", *map(str, binaries)], capture_output=True, text=True, check=False).stdout
    found = {Path(path) for path in re.findall(r"(?:=> |^\t)(/\S+) \(0x", said, re.MULTILINE)}
    system = next(path.parent for path in found if path.name == "libc.so.6")
    found |= {path for name in _BY_NAME for path in system.glob(name)}
    usual = ("/lib/", "/lib64/", "/usr/lib/", "/usr/lib64/")
    # One from elsewhere, as a Python of one's own has, goes where every program of the image looks.
    return {
        str(path if str(path).startswith(usual) else system / path.name): Path(os.path.realpath(path))
        for path in found
    }


def _certificates() -> Path:
    """This machine's, so that pip reaches in a build what it reaches here."""
    paths = ssl.get_default_verify_paths()
    for path in (paths.cafile, _CERTIFICATES, "/etc/pki/tls/certs/ca-bundle.crt"):
        if path and Path(path).is_file():
            return Path(os.path.realpath(path))
    raise FileNotFoundError(
        "This machine has no CA certificates. On Debian or Ubuntu: apt-get install ca-certificates"
    )
