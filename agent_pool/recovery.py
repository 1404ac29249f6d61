"""What a pool does first: it takes up the desired state from disk, and the workers that still run."""

from agentruntime import log

from agent_pool.deployment import Deployment
from agent_pool.drivers.base import Driver, Prepared
from agent_pool.keeper import Keeper
from agent_pool.ledger import Ledger, Reservation
from agent_pool.lifecycle import Event, State
from agent_pool.state import SavedDeployment

_log = log.get("agent_pool.recovery")


async def recover(saved: list[SavedDeployment], driver: Driver, ledger: Ledger, keeper: Keeper) -> list[Deployment]:
    """Everything that was desired: adopts the workers that still run, and has the missing ones started."""
    deployments = [entry.restored() for entry in saved]
    for deployment in deployments:
        _send_away(deployment)
    running = [
        (deployment, worker)
        for deployment in deployments
        for worker in deployment.workers.values()
        if not worker.rests
    ]
    launches = {worker.key: deployment.launch(worker) for deployment, worker in running}
    handles = {worker.key: worker.handle for _, worker in running}
    adopted = {each.key: each for each in await driver.recover(_revisions(deployments), launches, handles)}
    for deployment, worker in running:
        if each := adopted.get(worker.key):
            worker.runs(each, adopted=True)
            resources = deployment.spec_of(worker).resources
            ledger.adopt(worker.key, Reservation(resources.cpu_millis, resources.memory_bytes, worker.gpus))
        elif worker.state is State.DRAINING:
            del deployment.workers[worker.key]
    for deployment in deployments:
        _keep(deployment, keeper)
    if adopted:
        _log.info("took over workers", workers=sorted(adopted))
    return deployments


def _send_away(deployment: Deployment) -> None:
    """Has the workers drain that are not wanted any more: a lost pool must not cut their calls."""
    if deployment.roll is not None and not deployment.roll.back_to:
        # A restart: whoever asked for it has heard that the pool was lost.
        deployment.roll, deployment.status = None, ""
    unwanted = deployment.surplus() if deployment.roll is None else []
    for worker in unwanted:
        if worker.rests:
            del deployment.workers[worker.key]
        else:
            worker.apply(Event.DRAIN)


def _revisions(deployments: list[Deployment]) -> dict[str, Prepared]:
    """Those whose templates are wanted, by key."""
    wanted: dict[str, Prepared] = {}
    for deployment in deployments:
        numbers = {worker.revision for worker in deployment.workers.values() if not worker.rests}
        if not deployment.stopped:
            numbers.add(deployment.current)
        for number in numbers:
            spec = deployment.revisions[number]
            wanted[spec.key] = spec.prepared
    return wanted


def _keep(deployment: Deployment, keeper: Keeper) -> None:
    if deployment.roll is None:
        deployment.new_workers(max(0, deployment.target - len(deployment.living())))
    for worker in deployment.workers.values():
        if worker.state is State.DRAINING:
            keeper.see_off(deployment, worker)
        elif not worker.rests:
            keeper.resume(deployment, worker)
