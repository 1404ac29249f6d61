"""What is asked of the engine in one go, each in a thread: see `Engine.ask`."""

import contextlib
import math
from typing import TYPE_CHECKING, Any

from agent_pool.drivers import docker_request

if TYPE_CHECKING:
    import docker

# For a container whose process is gone to be known as ended.
_STATE_TIMEOUT_S = 10
# In characters: a line of a container's can be as long as its log.
_LONGEST_WORDS = 16_384


def launched(config: dict[str, Any], name: str, client: "docker.DockerClient") -> tuple[str, int]:
    """Creates and starts a container: its id and pid, 0 if it has ended already.

    If it fails, it is still to be removed by its name: the engine may not have answered, and be at it yet.
    """
    created: dict[str, Any] = client.api.create_container_from_config(config, name)  # type: ignore[no-untyped-call]  # it has no annotations
    container = str(created["Id"])
    try:
        client.api.start(container)
        return container, int(client.api.inspect_container(container)["State"]["Pid"])
    except BaseException:
        removed(container, client)
        raise


def removed(container: str, client: "docker.DockerClient") -> None:
    """Kills and removes a container, by its id or name, if it is there."""
    import docker.errors  # noqa: PLC0415 — a pool that runs no container must not pay for it

    with contextlib.suppress(docker.errors.NotFound):
        client.api.remove_container(container, force=True, v=True)


def awaited(
    container: str, timeout_s: float, client: "docker.DockerClient"
) -> tuple[dict[str, Any] | None, str, str]:
    """Waits for a container: its state, None if it went on; what it answered, and the end of what else it printed."""
    import requests.exceptions  # noqa: PLC0415 — as above

    try:
        client.api.wait(container, timeout=math.ceil(timeout_s))
    except requests.exceptions.ReadTimeout:
        return None, "", ""
    except requests.exceptions.ConnectionError as error:
        # So urllib3's own time-outs arrive where the answer has begun.
        if "timed out" in str(error).lower():
            return None, "", ""
        raise
    state = client.api.inspect_container(container)["State"]
    said = client.api.logs(container, stdout=True, stderr=False)
    return state, said.decode(errors="replace"), last_words(container, client)


def last_words(container: str, client: "docker.DockerClient") -> str:
    """The end of what a container printed before it had a log of ours."""
    lines = client.api.logs(container, stdout=False, stderr=True, tail=20)
    return str(lines.decode(errors="replace")).strip()[-_LONGEST_WORDS:]


def state(container: str, client: "docker.DockerClient") -> dict[str, Any]:
    """Of a container whose process has ended, once the engine knows that."""
    client.api.wait(container, timeout=_STATE_TIMEOUT_S)
    return dict(client.api.inspect_container(container)["State"])


def update(container: str, caps: dict[str, int], client: "docker.DockerClient") -> None:
    """Changes caps of a container; docker's own `update_container` has no PidsLimit."""
    import docker.errors  # noqa: PLC0415 — a pool that runs no container must not pay for it
    import requests.exceptions  # noqa: PLC0415 — as above

    api = client.api
    answer = api.post(f"{api.base_url}/v{api.api_version}/containers/{container}/update", json=caps)
    try:
        answer.raise_for_status()
    except requests.exceptions.HTTPError as error:
        docker.errors.create_api_error_from_http_exception(error)


def volumes(image: str, client: "docker.DockerClient") -> list[str]:
    """The directories of an image that are volumes: the engine makes them writable in each container."""
    config = client.api.inspect_image(image)["Config"]  # type: ignore[no-untyped-call]  # it has no annotations
    return sorted(config.get("Volumes") or ())


def containers(pool: str, client: "docker.DockerClient") -> dict[str, str]:
    """Names of the containers of a pool, by id, those that ended included."""
    label = f"{docker_request.LABEL_POOL}={pool}"
    found = client.api.containers(all=True, filters={"label": label})
    return {str(each["Id"]): str((each["Names"] or ["/"])[0]).removeprefix("/") for each in found}
