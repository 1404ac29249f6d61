"""What of the machine is promised to whom: CPU, memory, GPUs. It refuses what does not fit."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from agentruntime import errors, units

from agent_pool.resources import Resources


@dataclass(frozen=True)
class Capacity:
    """Of a machine. `gpus` are their indices."""

    cpu_millis: int
    memory_bytes: int
    gpus: tuple[int, ...] = ()


@dataclass(frozen=True)
class Reservation:
    """Of one worker."""

    cpu_millis: int
    memory_bytes: int
    gpus: tuple[int, ...] = ()


class Ledger:
    """Reservations by holder. Knows nothing of processes."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self._held: dict[str, Reservation] = {}

    def reserved(self) -> Capacity:
        """The sum of what is held."""
        return self._sum(self._held.values())

    @staticmethod
    def _sum(reservations: Iterable[Reservation]) -> Capacity:
        held = list(reservations)
        return Capacity(
            sum(each.cpu_millis for each in held),
            sum(each.memory_bytes for each in held),
            tuple(sorted(gpu for each in held for gpu in each.gpus)),
        )

    def reserve(self, holders: Iterable[str], resources: Resources) -> dict[str, Reservation]:
        """Reserves the same for each holder, or for none of them. What a holder has already stays as it is.

        Raises:
            FailedPrecondition: more GPUs than the machine has.
            InsufficientResources: it does not fit; says what was asked and what is free.
        """
        wanted = [holder for holder in holders if holder not in self._held]
        if wanted:
            self.check(len(wanted), resources)
            leased = set(self.reserved().gpus)
            free = [gpu for gpu in self.capacity.gpus if gpu not in leased]
            for index, holder in enumerate(wanted):
                gpus = tuple(free[index * resources.gpus : (index + 1) * resources.gpus])
                self._held[holder] = Reservation(resources.cpu_millis, resources.memory_bytes, gpus)
        return {holder: self._held[holder] for holder in wanted}

    def adopt(self, holder: str, reservation: Reservation) -> None:
        """Enters what a worker that runs already holds, even beyond the capacity."""
        self._held[holder] = reservation

    def release(self, holder: str) -> None:
        """Gives back what the holder has, if it has anything."""
        self._held.pop(holder, None)

    def room(self, resources: Resources) -> int:
        """How many more holders of so much would fit."""
        reserved = self.reserved()
        rooms = [(self.capacity.cpu_millis - reserved.cpu_millis) // resources.cpu_millis]
        if resources.memory_bytes:
            rooms.append((self.capacity.memory_bytes - reserved.memory_bytes) // resources.memory_bytes)
        if resources.gpus:
            rooms.append((len(self.capacity.gpus) - len(reserved.gpus)) // resources.gpus)
        return max(0, min(rooms))

    def holding(self, holder: str) -> Reservation | None:
        return self._held.get(holder)

    def change(self, holders: Iterable[str], resources: Resources) -> None:
        """Changes the CPU and memory that each of them has, or of none of them. GPUs stay as they are.

        Raises:
            InsufficientResources: it does not fit; says what was asked and what is free.
        """
        before = {holder: held for holder in holders if (held := self._held.get(holder))}
        for holder in before:
            del self._held[holder]
        try:
            self.check(len(before), replace(resources, gpus=0))
        except BaseException:
            self._held |= before
            raise
        for holder, held in before.items():
            self._held[holder] = Reservation(resources.cpu_millis, resources.memory_bytes, held.gpus)

    def check(self, count: int, resources: Resources, *, besides: Iterable[str] = ()) -> None:
        """Raises as `reserve` does if so many more holders do not fit, were those `besides` gone."""
        leaving = set(besides)
        reserved = self._sum(held for holder, held in self._held.items() if holder not in leaving)
        gpus = count * resources.gpus
        if resources.gpus > len(self.capacity.gpus):
            have = len(self.capacity.gpus)
            raise errors.FailedPrecondition(
                f"this machine has {have} {'GPU' if have == 1 else 'GPUs'}, {resources.gpus} requested",
                reason="NO_SUCH_GPU",
            )
        free = {
            "cpu": self.capacity.cpu_millis - reserved.cpu_millis,
            "memory": self.capacity.memory_bytes - reserved.memory_bytes,
            "gpu": len(self.capacity.gpus) - len(reserved.gpus),
        }
        asked = {"cpu": count * resources.cpu_millis, "memory": count * resources.memory_bytes, "gpu": gpus}
        short = [name for name in asked if asked[name] > max(free[name], 0)]
        if short:
            parts = [f"{_say(name, asked[name])} asked, {_say(name, max(free[name], 0))} free" for name in short]
            workers = "1 worker" if count == 1 else f"{count} workers"
            raise errors.InsufficientResources(
                f"{workers} will not fit: {'; '.join(parts)}; stop an agent or ask for less",
                metadata={f"{name}_free": str(free[name]) for name in free},
            )


def _say(name: str, amount: int) -> str:
    if name == "memory":
        return f"{units.format_size(amount)} of memory"
    if name == "cpu":
        return f"{units.format_cpu(amount)} CPU"
    return f"{amount} {'GPU' if amount == 1 else 'GPUs'}"
