"""How much of what one caller is refused is recorded: a bounded number a minute, the rest as a count."""

from collections.abc import Iterator
from dataclasses import dataclass, field

MINUTE_S = 60.0
# Records a minute of one principal's denials and failures, and of all principals' together.
EACH = 30
ALL = 3000


@dataclass
class _Minute:
    recorded: int = 0
    # Action of the last that was only counted.
    action: str = ""
    counted: int = 0


@dataclass(frozen=True)
class Rest:
    """What was counted and not recorded."""

    principal: str
    action: str
    count: int


@dataclass
class Floods:
    """Of the minute that goes on."""

    _began_s: float = 0.0
    _all: int = 0
    _minutes: dict[str, _Minute] = field(default_factory=dict)

    def admits(self, principal: str, action: str) -> bool:
        """Whether a denial is to be recorded; counts it otherwise."""
        if principal not in self._minutes and len(self._minutes) >= ALL:
            principal = "*"
        minute = self._minutes.setdefault(principal, _Minute())
        if minute.recorded < EACH and self._all < ALL:
            minute.recorded += 1
            self._all += 1
            return True
        minute.counted += 1
        minute.action = action
        return False

    def over(self, now_s: float, *, at_once: bool = False) -> Iterator[Rest]:
        """What was only counted, if the minute is over; the next begins."""
        if not at_once and 0 <= now_s - self._began_s < MINUTE_S:
            return
        ended, self._minutes = self._minutes, {}
        self._began_s, self._all = now_s, 0
        yield from (Rest(name, each.action, each.counted) for name, each in sorted(ended.items()) if each.counted)
