"""A worker's secrets: unsealed, written as files that only it can read, and kept out of what it prints.

Done before any code of the agent's runs in the worker. The files are in memory (a tmpfs of the worker's own mount
namespace, or of its container) wherever there is such a thing, and are gone with the worker.
"""

import os
import resource
from pathlib import Path

from agentruntime import sealed, secrets
from agentruntime.redaction import Redactor

from agent_worker import output

# fs/coredump.c: a limit of one byte is too little for any file, and, other than 0, also keeps a core from a program
# that the system hands cores to (core_pattern).
_NO_CORE = 1


def take(descriptor: int, directory: Path) -> None:
    """Makes files of what was handed over, and redacts it from what this process prints from now on.

    Args:
        descriptor: as `agentruntime.sealed` makes it; closed here.
        directory: the worker's own, which it may write to; where the platform does not put its secrets usually, an
            environment variable says where they are.

    Raises:
        OSError, ValueError: they could not be written; the worker must end.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    least = min(_NO_CORE, hard) if hard >= 0 else _NO_CORE
    resource.setrlimit(resource.RLIMIT_CORE, (least, least))
    values = sealed.unseal(descriptor)
    if directory != secrets.DIRECTORY:
        directory.mkdir(mode=0o700)
        os.environ[secrets.VARIABLE] = str(directory)
    for name, value in values.items():
        path = directory / secrets.check_file_name(name)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400), "wb") as stream:
            stream.write(value)
    if directory == secrets.DIRECTORY:
        directory.chmod(0o500)
    output.redact(Redactor({name: [value] for name, value in values.items()}))
