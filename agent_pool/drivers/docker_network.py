"""A limit on a container's network, in the version 2 control group that its engine makes for it."""

from agentruntime import errors

from agent_pool.cgroups import detect, network


def missing() -> str:
    """Why containers cannot be limited here, or ""."""
    if detect.here().v2 is None:
        return "it wants control groups version 2, which may be beside version 1"
    return network.missing()


def limit(container: str, pid: int, bits_per_s: int) -> None:
    """Limits what a container sends, and what it receives. Blocks.

    Args:
        container: its id.
        pid: of its first process.
        bits_per_s: in each direction.

    Raises:
        FailedPrecondition: the engine gave it no such group of its own, or the kernel refuses.
    """
    directory = detect.unified_of(pid)
    try:
        if directory is None or container not in directory.name:
            raise OSError(0, "its engine gave it no control group version 2")
        network.limit(directory, bits_per_s)
    except OSError as error:
        raise errors.FailedPrecondition(
            f"the network of a container cannot be limited here: {error.strerror}; leave out --network-limit"
        ) from None
