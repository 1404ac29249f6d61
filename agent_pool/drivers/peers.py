"""Who has which uid, for the gateway: it learns from the kernel the uid of whoever connects to it.

A file for each, written before the worker exists, so that it is there for the worker's first call: what the pool
streams to the gateway may come later. A file that outlives a pool names nobody, until the uid's next worker gets it.
"""

import errno
import json
import os
from dataclasses import asdict
from pathlib import Path

from agentruntime import log
from agentruntime.home import Home
from agentruntime.launch import PeerFile

from agent_pool.drivers.base import Launch

_log = log.get("agent_pool.drivers.peers")


class Peers:
    """Of one pool. Where it is not root all workers have its own uid, which tells nothing."""

    def __init__(self, home: Home) -> None:
        self._directory = home.peers
        self._directory.mkdir(mode=0o700, exist_ok=True)

    def tell(self, uid: int, launch: Launch, group: str) -> None:
        """Before the worker runs.

        Args:
            uid: the worker's.
            launch: which it is.
            group: in the name of its control group; "" where there is none.
        """
        if uid != os.geteuid():
            content = PeerFile(launch.revision.agent, launch.worker_id, launch.revision.number, group)
            try:
                self._file(uid).write_text(json.dumps(asdict(content)))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                # It serves all the same; only its own calls are refused, for nobody knows whose they are.
                self.forget(uid)
                _log.error("the disk is full: a worker's system calls will be refused", worker=launch.worker_id)

    def forget(self, uid: int) -> None:
        """Once nothing runs any more that has it. Idempotent."""
        self._file(uid).unlink(missing_ok=True)

    def _file(self, uid: int) -> Path:
        return self._directory / str(uid)


def kernel_dir(home: Home, agent: str) -> Path:
    """`Home.kernel_dir`, made: its sockets are the gateway's, which makes them when it runs."""
    directory = home.kernel_dir(agent)
    # Workers come through it with uids of their own; nobody else comes through the directory above.
    directory.mkdir(mode=0o711, parents=True, exist_ok=True)
    return directory
