"""Keeps Envoy's access log from filling the disk: at a size it is renamed, and Envoy begins a new one."""

import asyncio
from pathlib import Path

from agentruntime import log
from agentruntime.errors import Unavailable

from uapi_gateway.admin import Admin

_log = log.get("uapi_gateway.access_log")
_TICK_S = 5.0


async def keep_access_log_small(path: Path, admin: Admin, most_bytes: int) -> None:
    """Looks at the size every few seconds, until cancelled. One older file is kept, as `.1`."""
    while True:
        await asyncio.sleep(_TICK_S)
        try:
            await rotate(path, admin, most_bytes)
        except (OSError, Unavailable) as error:
            _log.warning("the access log cannot be rotated", error=str(error))


async def rotate(path: Path, admin: Admin, most_bytes: int) -> bool:
    """Renames the log if it is too large, and has Envoy open a new one; says whether it was.

    Raises:
        OSError: the file system refuses.
        Unavailable: Envoy does not answer.
    """
    if not _renamed(path, most_bytes):
        return False
    await admin.post("/reopen_logs")
    return True


def _renamed(path: Path, most_bytes: int) -> bool:
    if not path.exists() or path.stat().st_size < most_bytes:
        return False
    path.rename(path.with_name(path.name + ".1"))
    return True
