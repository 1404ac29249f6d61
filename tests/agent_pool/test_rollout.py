"""The plan of a roll: by tables, and by rolls of all kinds that are simulated."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_pool.rollout import Done, Drain, Old, Situation, Start, Step, Stuck, Wait, next_step

A, B = Old("a", serves=True), Old("b", serves=True)
DEAD = Old("dead", serves=False)


def situation(
    old: tuple[Old, ...] = (), *, wanted: int = 2, starting: int = 0, ready: int = 0, draining: int = 0,
    others_serve: bool = False, room: bool = True,
) -> Situation:  # fmt: skip
    return Situation(wanted, old, starting, ready, draining, others_serve, room)


@pytest.mark.parametrize(
    ("now", "step"),
    [
        (situation((A, B)), Start()),
        (situation((A, B), starting=1), Wait()),
        (situation((A, B), ready=1), Drain("a")),
        (situation((A, DEAD), ready=1), Drain("dead")),
        (situation((B,), ready=1, draining=1), Start()),
        (situation((B,), ready=2), Drain("b")),
        (situation((), ready=2, draining=1), Wait()),
        (situation((), ready=2), Done()),
        # No room: one of two makes some, its room is waited for, the last one stays.
        (situation((A, B), room=False), Drain("a")),
        (situation((B,), draining=1, room=False), Wait()),
        (situation((A, DEAD), room=False), Drain("dead")),
        (situation((A,), wanted=1, room=False), Stuck()),
        (situation((DEAD,), wanted=1, room=False), Drain("dead")),
        (situation((A,), wanted=1, others_serve=True, room=False), Drain("a")),
        (situation((), wanted=1, room=False), Stuck()),
        # More or fewer than there were.
        (situation((A, B), wanted=1), Drain("a")),
        (situation((), wanted=1), Start()),
        (situation((), wanted=0), Done()),
    ],
)
def test_next_step(now: Situation, step: Step) -> None:
    assert next_step(now) == step


@dataclass
class Machine:
    """Takes steps, and chooses when what was begun is over."""

    wanted: int
    old: list[Old]
    capacity: int
    others_serve: bool
    starting: int = 0
    ready: int = 0
    draining: int = 0
    serving: list[int] = field(default_factory=list)

    @property
    def room(self) -> bool:
        return len(self.old) + self.starting + self.ready + self.draining < self.capacity

    def step(self) -> Step:
        step = next_step(
            Situation(
                self.wanted, tuple(self.old), self.starting, self.ready, self.draining, self.others_serve, self.room
            )
        )
        match step:
            case Start():
                assert self.room
                self.starting += 1
            case Drain(worker_id):
                self.old = [each for each in self.old if each.key != worker_id]
                self.draining += 1
        self.serving.append(sum(each.serves for each in self.old) + self.ready)
        return step


@given(
    data=st.data(),
    serves=st.lists(st.booleans(), min_size=0, max_size=6),
    more=st.integers(-2, 2),
    spare_room=st.integers(0, 3),
    others_serve=st.booleans(),
)
def test_a_roll_ends_with_all_new_and_serves_all_the_while(
    data: st.DataObject, serves: list[bool], more: int, spare_room: int, others_serve: bool
) -> None:
    old = [Old(str(index), serves=each) for index, each in enumerate(serves)]
    wanted = max(0, len(old) + more)
    machine = Machine(wanted, old, capacity=max(wanted, len(old)) + spare_room, others_serve=others_serve)
    begun = sum(serves)
    for _ in range(200):
        step = machine.step()
        assert len(machine.old) + machine.starting + machine.ready <= max(wanted + 1, len(old))
        if isinstance(step, (Done, Stuck)):
            break
        if isinstance(step, Wait):
            over = [name for name in ("starting", "draining") if getattr(machine, name)]
            assert over, "it would wait for ever"
            chosen = data.draw(st.sampled_from(over))
            setattr(machine, chosen, getattr(machine, chosen) - 1)
            machine.ready += chosen == "starting"
        elif machine.draining and data.draw(st.booleans()):
            machine.draining -= 1
    else:
        pytest.fail("it did not end")
    least = min(begun, wanted)
    if isinstance(step, Stuck):
        # Only the last one that serves, with no room beside it, and before anything else was lost.
        assert not spare_room
        assert (sum(each.serves for each in machine.old), machine.ready) == (1, 0)
        assert wanted == 1 == len(machine.old)
        assert not others_serve
    else:
        assert not machine.old
        assert machine.ready == wanted
        # One less where room had to be made, or where nobody was missed.
        assert min(machine.serving) >= least - (0 if spare_room else 1)
