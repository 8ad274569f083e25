"""When something may be tried again: an attempt that failed, a call that hit a bug."""

import logging
import random
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from shared.domain.errors import Outage

log = logging.getLogger(__name__)

T = TypeVar("T")

#: A bug may be a fluke (a race, a full disk); three tries in process, then whoever met it is buried.
TRIES: Final = 3
_PAUSE_SECONDS: Final = 0.2
#: Workers that may die in a row while a row is all they look at; then the row counts as what kills them.
DEATHS: Final = 3


@dataclass(frozen=True, slots=True)
class Bug:
    """A call raised what nobody had planned for, TRIES times. `trace` is the last traceback, its end if it is long."""

    trace: str


def killer(deaths: int) -> Bug | None:
    """The bug of a row of which so many workers died in a row; None while that may be chance."""
    return Bug(f"{deaths} workers died in a row while they looked at nothing else") if deaths >= DEATHS else None


def tried(work: Callable[[int], T], pause: Callable[[float], object]) -> T | Bug:
    """The answer of `work`, which is given the number of tries before this one; Bug when it never gives any.

    Raises Outage at once: that is nobody's bug. pause -- waits so many seconds, or less when the worker stops.
    """
    before = 0
    while True:
        try:
            return work(before)
        except Outage:
            raise
        except Exception as error:
            log.exception("a bug", extra={"tries": before + 1})
            before += 1
            if before == TRIES:
                return Bug("".join(traceback.format_exception(error))[-1500:])
            pause(_PAUSE_SECONDS * before)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Charged attempts an order has, and how long it waits between them (seconds)."""

    max_charged: int = 5
    first_seconds: float = 10.0
    factor: float = 3.0
    cap_seconds: float = 900.0

    def has_tries_left(self, charged: int) -> bool:
        return charged < self.max_charged

    def backoff_seconds(self, charged: int) -> float:
        """Full jitter: anything from 0 to first x factor^(charged - 1), capped. charged -- counted from 1."""
        ceiling = min(self.cap_seconds, self.first_seconds * self.factor ** max(0, charged - 1))
        return random.uniform(0, ceiling)
