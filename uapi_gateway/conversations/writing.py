"""Group commit: what comes while a transaction runs goes together in the next one, and is answered when that is on
disk.

Of one conversation at most one append is in a transaction. Whether that was written can then be told by the last
sequence number alone, when the store's answer is lost.
"""

import asyncio
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from agentruntime import log
from agentruntime.errors import AgentError, Internal, LeaseLost, StoreUnavailable

from uapi_gateway.conversations.leases import Done, Hold
from uapi_gateway.conversations.store import Append, Appended, Store

_log = log.get("uapi_gateway.conversations")
# Of one transaction: conversations, for as long as it runs everybody else waits.
MOST_APPENDS = 512
# While the store is away.
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.05, 2.0
# Upper bounds of the histogram of transactions. A sync takes from a tenth of a millisecond to tens of them.
BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
# Gets what was written: the conversation, its events and the time.
Written = Callable[[Hold, Append, int], None]


@dataclass
class Figures:
    """Since the gateway started."""

    appends: int = 0
    refused: int = 0
    # Times the store could not be reached.
    failures: int = 0
    # Transactions that took at most so long as the bucket of the same index, not cumulative; the last is of longer
    # ones.
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    commit_s: float = 0.0
    # Now: conversations that somebody has or waits for, and who watches some.
    open: int = 0
    watchers: int = 0

    @property
    def commits(self) -> int:
        return sum(self.buckets)

    def add(self, took_s: float, appends: int) -> None:
        self.appends += appends
        self.buckets[bisect_left(BUCKETS_S, took_s)] += 1
        self.commit_s += took_s


class Writer:
    """Of one store.

    Args:
        written: is told what is on disk, before those who wait for it.
        lost: is told of holders that can write no more.
        now_ns: the time, Unix.
    """

    def __init__(
        self, written: Written, lost: Callable[[Hold], None], *, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._written = written
        self._lost = lost
        self._now_ns = now_ns
        self._due: deque[Hold] = deque()
        self._news = asyncio.Event()
        self.figures = Figures()
        # Why nothing can be written now.
        self.trouble = ""

    def add(self, hold: Hold, append: Append, done: Done) -> None:
        """Has it written, after all that the conversation has to write already."""
        if hold.over or append.token != hold.token:
            _call(done, _lease_lost(hold), 0)
            return
        hold.queue.append((append, done))
        if not hold.busy:
            hold.busy = True
            self._due.append(hold)
            self._news.set()

    def drop(self, hold: Hold) -> None:
        """Writes nothing more of it."""
        hold.over = True
        dropped = list(hold.queue)
        hold.queue.clear()
        for _, done in dropped:
            _call(done, _lease_lost(hold), 0)
        self.settle(hold)

    def settle(self, hold: Hold) -> None:
        """Tells those who wait for that, if nothing of it is to be written."""
        if not hold.busy:
            _drained(hold)

    async def run(self, store: Store) -> None:
        """Writes until cancelled."""
        while True:
            if not self._due:
                self._news.clear()
                await self._news.wait()
            holds = [self._due.popleft() for _ in range(min(len(self._due), MOST_APPENDS))]
            batch = [(hold, *hold.queue.popleft()) for hold in holds if hold.queue]
            now_ns = self._now_ns()
            results = await self._commit(store, [(hold, append) for hold, append, _ in batch], now_ns)
            for (hold, append, done), result in zip(batch, results, strict=True):
                _call(self._tell, hold, append, result, now_ns)
                _call(done, result, now_ns)
            for hold in holds:
                if hold.queue:
                    self._due.append(hold)
                else:
                    hold.busy = False
                    _drained(hold)

    def _tell(self, hold: Hold, append: Append, result: Appended | AgentError, now_ns: int) -> None:
        if isinstance(result, AgentError):
            self.figures.refused += 1
            if isinstance(result, (LeaseLost, Internal)) and not hold.over:
                self._lost(hold)
        elif result.known is None:
            hold.wrote(append, result.last_sequence)
            self._written(hold, append, now_ns)

    async def _commit(
        self, store: Store, batch: Sequence[tuple[Hold, Append]], now_ns: int
    ) -> Sequence[Appended | AgentError]:
        """Until the store has answered."""
        if not batch:
            return []
        appends, delay_s = [append for _, append in batch], _FIRST_DELAY_S
        while True:
            began = time.monotonic()
            try:
                results = await store.append(appends, now_ns)
            except StoreUnavailable as error:
                self.figures.failures += 1
                self.trouble = error.message
                _log.warning("the conversations cannot be written now; tried again", error=error.message)
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
                # It may be on disk all the same.
                batch = [(hold, replace(append, after=hold.last_sequence)) for hold, append in batch]
                appends = [append for _, append in batch]
            except Exception:
                _log.exception("conversations could not be written in an unforeseen way", appends=len(appends))
                if len(batch) == 1:
                    return [Internal("the conversation could not be written; the gateway's log says why")]
                # One of them may be the reason; the others have no part in it.
                return [result for each in batch for result in await self._commit(store, [each], now_ns)]
            else:
                self.trouble = ""
                self.figures.add(time.monotonic() - began, len(appends))
                return results


def _drained(hold: Hold) -> None:
    waiting, hold.drained = hold.drained, []
    for call in waiting:
        _call(call)


def _call(told: Callable[..., None], *arguments: object) -> None:
    """Whoever is told of one conversation ends the writer of all for no reason."""
    try:
        told(*arguments)
    except Exception:
        _log.exception("what was written of a conversation could not be told in an unforeseen way")


def _lease_lost(hold: Hold) -> LeaseLost:
    return LeaseLost(f"conversation '{hold.key.conversation_id}' is somebody else's to write, or deleted")
