"""What becomes of workers that are sick, that block, that die, by the policies of their agent."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent_pool.asked import Asked, AskedHealth, AskedPolicies, AskedServing, FailureAction, RestartMode
from agent_pool.deployment import Deployment
from agent_pool.drivers.base import Exit
from agent_pool.keeper import Keeper
from agent_pool.ledger import Capacity, Ledger
from agent_pool.lifecycle import State
from agent_pool.restart import Backoff
from agent_pool.worker import Worker
from tests.agent_pool import test_keeper
from tests.agent_pool.patients import Hospital, Patient
from tests.waiting import eventually

QUICK = AskedHealth(interval_s=0.01, timeout_s=1.0, retries=2)


class Ward:
    """One agent with one worker, which is ready."""

    def __init__(self, directory: Path, delay_s: float = 0.1) -> None:
        self.driver = Hospital(directory)
        self.ledger = Ledger(Capacity(4000, 2**33, ()))
        self.news = 0
        self.keeper = Keeper(
            self.driver,
            self.ledger,
            Backoff(delay_s, longest_delay_s=delay_s),
            changed=self._on_change,
            heard=test_keeper.at_once,
        )
        self.deployment: Deployment = test_keeper.deployment()
        [self.worker] = self.deployment.new_workers(1)

    def _on_change(self, agent: str) -> None:
        self.news += 1

    async def begin(
        self, *, action: FailureAction = "restart", mode: RestartMode = "always", health: AskedHealth = QUICK
    ) -> None:
        self.deployment.take_up(AskedPolicies(health=health, restart=mode))
        self.deployment.take_up(AskedPolicies(health=AskedHealth(failure_action=action)))
        await self.keeper.start(self.deployment, self.worker)

    @property
    def patient(self) -> Patient:
        return self.driver.patients[self.worker.worker_id]

    async def asked_again(self, asked: int) -> None:
        await eventually(lambda: self.patient.asked > asked + 2)

    async def failed(self, times: int) -> None:
        await eventually(lambda: self.worker.failures == times)

    async def until(self, *states: State) -> Worker:
        await eventually(lambda: self.worker.state in states)
        return self.worker


@pytest.fixture
async def ward(tmp_path: Path) -> AsyncIterator[Ward]:
    made = Ward(tmp_path)
    yield made
    await made.keeper.stop(made.deployment, made.worker, 0.0)
    assert made.deployment.workers == {}
    assert made.ledger.holding(made.worker.worker_id) is None


async def test_a_sick_worker_is_replaced(ward: Ward) -> None:
    await ward.begin()
    ward.patient.serves = False
    await eventually(lambda: ward.worker.restarts == 1 and ward.worker.state is State.READY)
    assert ward.worker.reason == "restarted after: unhealthy: health check says NOT_SERVING"
    assert ward.driver.graces_s == [1.0]
    assert ward.worker.pid == 2


async def test_a_sick_worker_is_left_alone_until_it_is_well(ward: Ward) -> None:
    await ward.begin(action="ignore")
    ward.patient.serves = False
    assert (await ward.until(State.UNHEALTHY)).reason == "health check says NOT_SERVING"
    asked = ward.patient.asked
    await ward.asked_again(asked)
    assert ward.worker.state is State.UNHEALTHY
    ward.patient.serves = True
    await ward.until(State.READY)
    assert (ward.worker.restarts, ward.driver.started, ward.driver.graces_s) == (0, 1, [])


async def test_one_that_is_debugged_is_left_alone_whatever_the_policy(ward: Ward) -> None:
    asked = Asked(serving=AskedServing(debug=True))
    ward.deployment.keep(ward.deployment.spec.model_copy(update={"asked": asked}))
    await ward.begin()
    ward.patient.serves = False
    await ward.until(State.UNHEALTHY)
    await ward.asked_again(ward.patient.asked)
    ward.patient.serves = True
    await ward.until(State.READY)
    assert ward.driver.started == 1


async def test_a_sick_worker_is_stopped_and_stays_listed(ward: Ward) -> None:
    await ward.begin(action="stop")
    ward.patient.serves = False
    await ward.until(State.STOPPED)
    assert ward.worker.reason == "unhealthy: health check says NOT_SERVING"
    assert ward.driver.graces_s == [30.0]
    await eventually(lambda: ward.ledger.holding(ward.worker.worker_id) is None)
    assert ward.worker.rests
    assert ward.deployment.living() == [ward.worker]
    assert ward.driver.started == 1


async def test_a_blocked_event_loop_counts(ward: Ward) -> None:
    await ward.begin(action="ignore")
    ward.patient.lag = "60"
    await eventually(lambda: ward.worker.lag_s == 0.06)
    assert ward.worker.state is State.READY
    ward.patient.lag = "1500"
    assert (await ward.until(State.UNHEALTHY)).reason == (
        "its event loop was blocked for 1.5s, longer than a health check may take (1s)"
    )
    for nonsense in ("-1", "nan", "inf", "soon"):
        ward.patient.lag = nonsense
        asked = ward.patient.asked
        await ward.asked_again(asked)
        assert ward.worker.lag_s == 0.0


async def test_one_that_is_suspected_is_asked_at_once_and_policies_change_at_once(ward: Ward) -> None:
    await ward.begin(health=AskedHealth(interval_s=1000.0, timeout_s=1.0, retries=1), action="ignore")
    ward.patient.serves = False
    ward.worker.ask_now.set()
    await ward.until(State.UNHEALTHY)
    ward.patient.serves = True
    ward.deployment.take_up(AskedPolicies(health=AskedHealth(interval_s=0.01)))
    await ward.until(State.READY)


async def test_a_crash_loop_is_called_so_with_the_last_traceback(ward: Ward) -> None:
    await ward.begin()
    for failures in range(1, 7):
        ward.patient.ended.set_result(Exit("exit status 1", "ValueError: no", "Traceback …\nValueError: no", 1))
        await ward.failed(failures)
        assert ward.worker.crash_loop is (failures >= 5)
        assert ward.worker.retry_at_s
        assert ward.worker.last_traceback == "Traceback …\nValueError: no"
        assert ward.worker.last_failure.endswith("failed: ValueError: no (exit status 1)")
        await ward.until(State.READY)
        assert not ward.worker.crash_loop
        assert not ward.worker.retry_at_s


@pytest.mark.parametrize(
    ("mode", "status", "state"),
    [
        ("on-failure", 0, State.STOPPED),
        ("no", 0, State.STOPPED),
        ("no", 3, State.FAILED),
        ("no", -9, State.FAILED),
        ("no", None, State.FAILED),
    ],
)
async def test_one_that_is_not_wanted_again_stays_listed(
    ward: Ward, mode: RestartMode, status: int | None, state: State
) -> None:
    await ward.begin(mode=mode)
    ward.patient.ended.set_result(Exit(f"exit status {status}", status=status))
    await ward.until(state)
    # Last of all, its reservation goes.
    await eventually(lambda: ward.worker.rests and ward.ledger.holding(ward.worker.worker_id) is None)
    assert ward.worker.reason == f"exit status {status}"
    assert ward.worker.retry_at_s == 0.0
    assert ward.driver.started == 1
    assert ward.deployment.living() == [ward.worker]


async def test_a_policy_that_wants_no_restart_ends_the_wait_for_one(tmp_path: Path) -> None:
    ward = Ward(tmp_path, delay_s=1000.0)
    await ward.begin()
    ward.patient.ended.set_result(Exit("exit status 1", status=1))
    await ward.until(State.FAILED)
    assert not ward.worker.rests
    ward.deployment.take_up(AskedPolicies(restart="no"))
    await eventually(lambda: ward.worker.rests)
    assert ward.worker.state is State.FAILED
    assert ward.worker.retry_at_s == 0


async def test_on_failure_starts_again_what_failed(ward: Ward) -> None:
    await ward.begin(mode="on-failure")
    ward.patient.ended.set_result(Exit("exit status 3", status=3))
    await eventually(lambda: ward.worker.restarts == 1 and ward.worker.state is State.READY)


async def test_one_that_is_stopped_while_its_health_has_it_drained(ward: Ward) -> None:
    await ward.begin(action="stop")
    draining = asyncio.Event()

    async def stop(key: str, grace_s: float) -> Exit:
        draining.set()
        await asyncio.sleep(1000 if grace_s == 30.0 else 0)
        return Exit("ended as asked")

    ward.driver.stop = stop  # type: ignore[method-assign]  # one that takes its time
    ward.patient.serves = False
    await draining.wait()
    assert ward.worker.state is State.DRAINING
    await ward.keeper.stop(ward.deployment, ward.worker, 0.5)
    assert ward.deployment.workers == {}


async def test_the_import_does_not_use_up_the_time_to_start(short_directory: Path) -> None:
    ward = Ward(short_directory)
    ward.driver.import_s = 0.5
    await ward.begin(health=AskedHealth(start_timeout_s=0.4))
    assert ward.worker.state is State.READY
    await ward.keeper.stop(ward.deployment, ward.worker, 0.0)
