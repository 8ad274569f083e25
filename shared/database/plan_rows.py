"""Plans as values: what a row of `plans` and its letters say, and how a preview is kept beside them."""

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa

from shared.database.estimates import Estimate
from shared.database.predictions import Outcome, Tally


class PlanState(StrEnum):
    PLANNED = "planned"  # nothing is sent before somebody applies it
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"  # by itself: too many failed
    DONE = "done"
    ABORTED = "aborted"

    @property
    def is_over(self) -> bool:
        return self in (PlanState.DONE, PlanState.ABORTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How a plan goes on.

    rate        -- letters per second, at most
    ramp        -- first so many letters, then so many, each time when all results so far are known to be fine
    stop_at     -- share of failures among the last results at which it stops itself; None: never
    stop_window -- how many last results
    """

    rate: float = 2.0
    ramp: Sequence[int] = (1, 5, 25, 100)
    stop_at: float | None = 0.2
    stop_window: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How many letters of a plan are where. sent -- gone round, and not ended yet"""

    waiting: int = 0
    sent: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    published: int = 0  # it had no row, and nothing was seen of what its message became
    refused: int = 0

    @property
    def letters(self) -> int:
        return self.waiting + self.sent + self.ended

    @property
    def ended(self) -> int:
        return self.completed + self.failed + self.cancelled + self.published + self.refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One row of `plans`.

    chosen  -- how its letters were chosen, for people
    step    -- place in the ramp
    preview -- as somebody looked at it last, before it was applied; None: not since this is kept
    """

    id: int
    at: datetime
    by_whom: str
    chosen: Mapping[str, Any]
    note: str | None
    state: PlanState
    state_why: str | None
    changed_at: datetime
    changed_by: str
    pool: str | None
    backend: str | None
    is_forced: bool
    pace: Pace
    step: int
    progress: Progress
    preview: "Preview | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanItem:
    """One letter of a plan. predicted -- when it was made; result -- None before its task has ended"""

    place: int
    letter_id: int
    task_id: uuid.UUID | None
    predicted: Outcome
    state: str
    result: str | None
    why: str | None
    replay_id: int | None
    ended_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a plan would have done at one moment. Nothing goes by it: each letter is judged again when its turn comes.

    at       -- that moment
    outcomes -- how many of each; those that are missing are none
    forced   -- how many of those that run do so although another task has completed their order
    seconds  -- until the last one has ended, with the pace of the plan; None: nobody can say
    """

    at: datetime
    letters: int
    outcomes: Mapping[Outcome, int]
    forced: int
    oldest: datetime | None
    newest: datetime | None
    estimate: Estimate
    seconds: float | None

    @property
    def going(self) -> int:
        return sum(count for outcome, count in self.outcomes.items() if outcome.goes)


_COUNTS: Final = ("waiting", "sent", "completed", "failed", "cancelled", "published", "refused")


def plan_of(row: sa.Row[Any]) -> Plan:
    """One row of the statements in plans.py."""
    values = dict(row._mapping)
    pace = Pace(**{name: values.pop(name) for name in ("rate", "ramp", "stop_at", "stop_window")})
    counted, kept, at = values.pop("counted"), values.pop("preview"), values.pop("previewed_at")
    counts = {name: values.pop(name) for name in _COUNTS}
    return Plan(
        **values | {"state": PlanState(row.state)},
        pace=pace,
        progress=Progress(**counts if counted is None else counted),
        preview=None if kept is None else _preview_of(kept, at, pace),
    )


def pace_values(pace: Pace) -> dict[str, Any]:
    """As the columns of `plans` have it. Pure."""
    return {"rate": pace.rate, "ramp": list(pace.ramp), "stop_at": pace.stop_at, "stop_window": pace.stop_window}


def kept(tally: Tally, estimate: Estimate) -> dict[str, Any]:
    """A preview as plans.preview has it. Pure."""
    return {
        "outcomes": tally.outcomes,
        "forced": tally.forced,
        "oldest": tally.oldest and tally.oldest.isoformat(),
        "newest": tally.newest and tally.newest.isoformat(),
        "estimate": asdict(estimate),
    }


def _preview_of(kept: Mapping[str, Any], at: datetime, pace: Pace) -> Preview:
    outcomes = Counter({outcome: kept["outcomes"][outcome] for outcome in Outcome if outcome in kept["outcomes"]})
    estimate = Estimate(**kept["estimate"])
    return Preview(
        at=at,
        letters=outcomes.total(),
        outcomes=outcomes,
        forced=kept["forced"],
        oldest=kept["oldest"] and datetime.fromisoformat(kept["oldest"]),
        newest=kept["newest"] and datetime.fromisoformat(kept["newest"]),
        estimate=estimate,
        seconds=_seconds(sum(count for outcome, count in outcomes.items() if outcome.goes), pace, estimate),
    )


def _seconds(going: int, pace: Pace, estimate: Estimate) -> float | None:
    """At the pace or as quickly as the backends work, whichever is slower, with a wait behind each step. Pure."""
    if estimate.work_seconds is None or estimate.order_seconds is None:
        return None
    waits = sum(1 for place in range(len(pace.ramp)) if sum(pace.ramp[:place]) < going)
    return max(going / pace.rate, estimate.work_seconds) + waits * estimate.order_seconds
