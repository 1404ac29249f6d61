"""What the verbs that start, change or scale an agent share: the wait with its progress, and the result."""

import math
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from agentruntime import errors, names
from agentruntime._proto.uapi.v1 import agent_pool_pb2 as pool_pb2
from agentruntime.cli import output
from agentruntime.client.sync import Client

# The pool bounds each step by the agent's own start timeout and the grace period; beyond this it no longer answers.
TIMEOUT_S = 3600.0
_SYNCED_WITHIN_S = 2.0
_LOOK_S = 0.25
AnswerT = TypeVar("AnswerT")


def followed(
    client: Client, name: str, text: str, call: Callable[[], AnswerT], *, goes_on: str, quiet: bool
) -> AnswerT:
    """Makes a call that takes long, and shows how the pool gets on with an agent meanwhile.

    Args:
        client: a client of the platform.
        name: the agent, or one of its workers.
        text: what is shown until the pool says more.
        call: made in a thread of its own. Ctrl-C is an exception at any place of the main thread, and a lock of
            grpc held there would never be let go.
        goes_on: said if the user interrupts: the pool does not stop for that.
        quiet: without lines where nobody looks, for output that a program reads.
    """
    try:
        with output.progress(text, quiet=quiet) as say:
            watch = client.pool.WatchDeployments(pool_pb2.WatchDeploymentsRequest(), timeout=math.inf)
            synced = threading.Event()
            watching = threading.Thread(target=_say_changes, args=(watch, name, say, synced), daemon=True)
            watching.start()
            answer: Future[AnswerT] = Future()
            threading.Thread(target=_answer, args=(call, synced, answer), daemon=True).start()
            try:
                # A signal that comes just before a wait does not end it.
                while not wait([answer], timeout=_LOOK_S).done:
                    continue
                return answer.result()
            finally:
                watch.cancel()
                watching.join()
    except KeyboardInterrupt:
        output.note(goes_on)
        raise
    except errors.Unavailable as error:
        if error.reason != "CONNECTION_LOST":
            raise
        # The pool that was asked is gone; the one after it knows.
        lost = f"{error.message}; `agent ps --agents` shows what became of it"
        raise errors.Unavailable(lost, reason=error.reason) from None


def _answer(call: Callable[[], AnswerT], synced: threading.Event, answer: "Future[AnswerT]") -> None:
    # Else what happened before could be taken for news.
    synced.wait(_SYNCED_WITHIN_S)
    try:
        answer.set_result(call())
    except Exception as error:
        answer.set_exception(error)


def _say_changes(watch: Any, name: str, say: Any, synced: threading.Event) -> None:
    said = ""
    try:
        for event in watch:
            if event.WhichOneof("event") == "synced":
                synced.set()
            changed = event.changed
            if name not in (changed.agent, *(worker.worker_id for worker in changed.workers)):
                continue
            if synced.is_set() and changed.status not in ("", said):
                say(changed.status)
            said = changed.status
    except errors.AgentError:
        # It was cancelled, or the pool died: the verb's own call says what there is to say.
        synced.set()


def data(of: pool_pb2.Deployment) -> dict[str, Any]:
    """A deployment for JSON."""
    fields = output.as_data(of)
    # For programs that route by it; a reader of JSON has no use for a serialized schema.
    del fields["descriptors"]
    return fields


def show(of: pool_pb2.Deployment, *, as_json: bool) -> None:
    """Prints what an agent is now."""
    if as_json:
        output.print_json(data(of))
        return
    for sentence in of.notes:
        output.note(f"note: {sentence}")
    print(sentence_of(of))


def sentence_of(of: pool_pb2.Deployment) -> str:
    """An agent as it is, in a sentence."""
    if of.stopped:
        return f"{of.agent} is stopped and has {of.image}; `{names.run_command(of.image, of.agent)}` starts it"
    if of.asleep or not (of.replicas or of.workers):
        return f"{of.agent} sleeps and has {of.image}; the next call wakes it"
    ready = [worker for worker in of.workers if worker.state == pool_pb2.WORKER_STATE_READY]
    canaries = [worker for worker in ready if worker.revision > of.revision]
    rest = ", ".join(worker.worker_id for worker in ready if worker not in canaries)
    at = f" at revision {of.revision}" if of.revision > 1 else ""
    tried = "".join(f"; {each.worker_id} tries {each.image} at revision {each.revision}" for each in canaries)
    return f"{of.agent} runs {of.image}{at}: {rest or 'no worker is ready'}{tried}"


def permitted(of: pool_pb2.Deployment) -> str:
    """What an agent may use, in a line; "" if nothing."""
    named = ((field.name, names) for field, names in of.permissions.ListFields())
    kinds = "; ".join(f"{kind} {', '.join(names)}" for kind, names in named)
    return f"It may use: {kinds}" if kinds else ""
