"""Conversations under kills: workers, the gateway, Envoy and the database's connections end while they go on.

Each caller sends its messages one after the other and reads every event. What was acknowledged must be on the log
once and in order, what a stream said must be what the log says, and no lease may have had two workers.
"""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from agentruntime import errors
from agentruntime._proto.uapi.v1 import conversation_service_pb2 as proto
from agentruntime.client import AsyncClient

from benchmarks.chaos import victims
from benchmarks.chaos.readiness import Readiness
from benchmarks.platform import Platform, platform
from benchmarks.table import Table
from benchmarks.turns import TALKER
from tests.postgresql import Server

_AGENT = "talker"
_BACK_TIMEOUT_S = 30.0
_CALL_TIMEOUT_S = 120.0
_WORDS = [f"word{number}" for number in range(12)]
Kill = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class TalkPlan:
    """How many talk for how long, and what ends meanwhile."""

    conversations: int
    seconds: float
    kill_every_s: float
    # Of "worker", "gateway", "envoy", "database", one after the other.
    victims: Sequence[str]
    workers: int = 4


FULL = TalkPlan(200, 60, 3, ("worker", "worker", "gateway", "worker", "envoy"))
SHORT = TalkPlan(200, 8, 2, ("worker", "gateway", "worker"))
# With a PostgreSQL in the place of the file.
FULL_DATABASE = TalkPlan(200, 30, 3, ("database", "worker", "gateway"))
SHORT_DATABASE = TalkPlan(200, 6, 2, ("database", "worker"))


@dataclass
class Turn:
    """One message, as its caller saw it."""

    message_id: str
    text: str
    # As they came.
    events: list[proto.Event] = field(default_factory=list)
    # None if it failed: `error` says how.
    reply: str | None = None
    error: str = ""


@dataclass
class Evidence:
    """What callers saw, and what the log says, by conversation."""

    turns: dict[str, list[Turn]]
    logs: dict[str, list[proto.Event]]
    kills: list[str]


async def measure(plan: TalkPlan) -> Table:
    """Plays the plan on a platform of its own."""
    return judged(await play(plan))


async def play_on_database(plan: TalkPlan, server: Server) -> Evidence:
    """The same with conversations in a PostgreSQL, whose connections may end, too."""
    url = server.database()
    ending = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname LIKE 'test_%'"

    async def end_connections() -> None:
        assert int(await asyncio.to_thread(server.query, ending)) > 0

    return await play(plan, end_connections, UAPI_GATEWAY_CONVERSATIONS_URL=url)


async def play(plan: TalkPlan, end_connections: Kill | None = None, **variables: str) -> Evidence:
    """Talks, kills, and reads the logs.

    Args:
        plan: for how long, and what is killed.
        end_connections: of the database's, for victims called "database".
        variables: of the platform's environment.
    """
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(platform(**variables))
        await asyncio.to_thread(running.agent, "build", str(TALKER))
        await running.run(f"{_AGENT}:1.0.0", plan.workers)
        readiness = Readiness(running.home, _AGENT)
        watching = asyncio.create_task(readiness.run())
        stack.callback(watching.cancel)
        await asyncio.wait_for(readiness.until(plan.workers), _BACK_TIMEOUT_S)
        client = await stack.enter_async_context(AsyncClient(running.address))
        over = asyncio.Event()
        turns: dict[str, list[Turn]] = {f"talk-{number}": [] for number in range(plan.conversations)}
        talking = [asyncio.create_task(_talk(client, name, said, over)) for name, said in turns.items()]
        kills = await _kill(plan, running, readiness, end_connections)
        over.set()
        await asyncio.gather(*talking)
        logs = {name: [event async for event in client.conversation(_AGENT, name).watch()] for name in turns}
    return Evidence(turns, logs, kills)


async def _talk(client: AsyncClient, name: str, said: list[Turn], over: asyncio.Event) -> None:
    conversation = client.conversation(_AGENT, name)
    dice = random.Random(name)
    for number in itertools.count():
        if over.is_set():
            return
        words = " ".join(dice.sample(_WORDS, len(_WORDS)))
        turn = Turn(f"{name}-{number}", f"slowly {words}")
        said.append(turn)
        try:
            handle = await conversation.send(turn.text, message_id=turn.message_id, timeout_s=_CALL_TIMEOUT_S)
            async for event in handle.watch_updates():
                turn.events.append(event)
            turn.reply = (await handle.get_response()).text
        except errors.AgentError as error:
            turn.error = f"{error.reason}: {error.message}"


async def _kill(plan: TalkPlan, running: Platform, readiness: Readiness, end_connections: Kill | None) -> list[str]:
    """Kills what the plan says, each when the one before is back; what was killed."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    kills: list[str] = []
    for what in itertools.cycle(plan.victims):
        await asyncio.sleep(plan.kill_every_s)
        if loop.time() - began_s > plan.seconds:
            return kills
        kills.append(what)
        match what:
            case "worker":
                victim = sorted(readiness.ready(), key=lambda process: (process.started, process.pid))[0]
                await victim.kill()
                await asyncio.wait_for(readiness.until(plan.workers, victim), _BACK_TIMEOUT_S)
            case "gateway":
                await victims.gateway(running.home).kill()
            case "envoy":
                await victims.envoy(running.home).kill()
            case "database":
                assert end_connections is not None
                await end_connections()
    raise AssertionError("a cycle has no end")


def judged(seen: Evidence) -> Table:
    """What must be so, as figures that must be 0."""
    turns = [turn for every in seen.turns.values() for turn in every]
    answered = [turn for turn in turns if turn.reply is not None]
    begun_again = sum(
        event.attempt.number > 1 for log in seen.logs.values() for event in log if event.HasField("attempt")
    )
    killed = ", ".join(f"{seen.kills.count(what)} × {what}" for what in dict.fromkeys(seen.kills))
    table = Table(
        "talks",
        f"{len(seen.turns)} conversations, {len(turns)} messages, {len(answered)} answered, {begun_again} begun "
        f"again; killed meanwhile: {killed or 'nothing'}.",
    )
    for what, found in faults(seen).items():
        table.add(f"{what}{f' ({found[0]})' if found else ''}", len(found), "", 0)
    return table


def faults(seen: Evidence) -> dict[str, list[str]]:
    """Whatever went wrong, by kind: which conversation or message it happened to."""
    found: dict[str, list[str]] = {
        "messages that failed": [],
        "acknowledged messages that are not on the log once": [],
        "replies other than the log's": [],
        "messages out of order": [],
        "gaps in a log": [],
        "tokens that became smaller": [],
        "leases of two workers": [],
        # A worker that replaces another one has its name.
        "leases of two processes": [],
        "attempts of unknown workers": [],
        "messages that were ended twice": [],
        "streams with a gap, a repeat, or other events than the log": [],
    }
    holders: dict[tuple[str, int], str] = {}
    processes: dict[tuple[str, int], str] = {}
    for name, log in seen.logs.items():
        if [event.sequence for event in log] != list(range(1, len(log) + 1)):
            found["gaps in a log"].append(name)
        if any(after.token < before.token for before, after in itertools.pairwise(log)):
            found["tokens that became smaller"].append(name)
        for event in log:
            if event.HasField("attempt"):
                holder = holders.setdefault((name, event.token), event.attempt.worker_id)
                if not event.attempt.worker_id:
                    found["attempts of unknown workers"].append(f"{name}, {event.sequence}")
                if holder != event.attempt.worker_id:
                    found["leases of two workers"].append(f"{name}, {event.token}")
            if event.HasField("chunk") and event.chunk.name != processes.setdefault(
                (name, event.token), event.chunk.name
            ):
                found["leases of two processes"].append(f"{name}, {event.token}")
        order = [event.message_id for event in log if event.HasField("message")]
        ends = [event.message_id for event in log if event.HasField("completion") or event.HasField("failure")]
        found["messages that were ended twice"] += sorted({each for each in ends if ends.count(each) > 1})
        sent = [turn.message_id for turn in seen.turns[name] if turn.message_id in order]
        if sent != order:
            found["messages out of order"].append(name)
        for turn in seen.turns[name]:
            _judge(turn, [event for event in log if event.message_id == turn.message_id], found)
    return found


def _judge(turn: Turn, log: list[proto.Event], found: dict[str, list[str]]) -> None:
    if turn.reply is None:
        found["messages that failed"].append(f"{turn.message_id}: {turn.error}")
        return
    if sum(event.HasField("message") for event in log) != 1:
        found["acknowledged messages that are not on the log once"].append(turn.message_id)
    completions = [
        "".join(part.text for part in event.completion.parts) for event in log if event.HasField("completion")
    ]
    if completions != [turn.reply] or turn.reply.split() != turn.text.split()[1:]:
        found["replies other than the log's"].append(turn.message_id)
    if turn.events != log:
        found["streams with a gap, a repeat, or other events than the log"].append(turn.message_id)
