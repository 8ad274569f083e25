"""The table `plans`: a frozen set of dead letters, the pace at which it goes round, and how far it has come."""

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa

from shared.database.actions import note_action
from shared.database.adopt import Refused
from shared.database.engine import in_transaction
from shared.database.estimates import Estimate, estimate_in
from shared.database.letters import LetterFilter, ids_in
from shared.database.predictions import Outcome, Prediction, Way, predictions_in
from shared.database.redirects import Check, misfits_in, pool_to


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
    """One row of `plans`. step -- place in the ramp; chosen -- how its letters were chosen, for people"""

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
    """What a plan would do now, for the letters that still wait.

    outcomes -- how many of each; those that are missing are none
    forced   -- how many of those that run do so although another task has completed their order
    seconds  -- until the last one has ended, with this pace; None: nobody can say
    """

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


#: Nobody means more than that: letters per second, letters in a step, results.
_MOST: Final = 10_000
_MOST_STEPS: Final = 100

_INSERT: Final = sa.text("""
insert into plans (by_whom, chosen, note, changed_by, pool, backend, is_forced, rate, ramp, stop_at, stop_window)
values (:by_whom, :chosen, :note, :by_whom, :pool, :backend, :is_forced, :rate, :ramp, :stop_at, :stop_window)
returning id
""").bindparams(sa.bindparam("chosen", type_=sa.JSON))
_INSERT_ITEMS: Final = sa.text("""
insert into plan_items (plan_id, place, dead_letter_id, predicted)
select :plan, v.place, v.letter, v.predicted
from unnest(cast(:letters as bigint[]), cast(:predicted as text[])) with ordinality as v(letter, predicted, place)
""")
_WINDOW: Final = sa.text("""
select now() as now, min(d.at) as oldest, max(d.at) as newest from dead_letters d
where d.id = any(cast(:ids as bigint[]))
""")
_WAITING: Final = sa.text(
    "select dead_letter_id as id from plan_items where plan_id = :id and state = 'waiting' order by place"
)
_PLANS: Final = """
select p.id, p.at, p.by_whom, p.chosen, p.note, p.state, p.state_why, p.changed_at, p.changed_by, p.pool,
    p.backend, p.is_forced, p.rate, p.ramp, p.stop_at, p.stop_window, p.step, i.*
from plans p cross join lateral (
    select count(*) filter (where state = 'waiting') as waiting, count(*) filter (where state = 'sent') as sent,
        count(*) filter (where result = 'completed') as completed, count(*) filter (where result = 'failed') as failed,
        count(*) filter (where result = 'cancelled') as cancelled,
        count(*) filter (where result = 'published') as published, count(*) filter (where result = 'refused') as refused
    from plan_items where plan_id = p.id) i
"""
_GET: Final = sa.text(f"{_PLANS} where p.id = :id")
_NEWEST: Final = sa.text(f"{_PLANS} where p.id < :before order by p.id desc limit :limit")
_ITEMS: Final = sa.text("""
select i.place, i.dead_letter_id as letter_id, d.task_id, i.predicted, i.state, i.result, i.why, i.replay_id, i.ended_at
from plan_items i join dead_letters d on d.id = i.dead_letter_id
where i.plan_id = :id and i.place > :after and (cast(:state as text) is null or i.state = :state)
    and (cast(:result as text) is null or i.result = :result)
order by i.place limit :limit
""")
_LOCK: Final = sa.text("select id, state from plans where id = :id for update")
_CHANGE: Final = sa.text("""
update plans set state = :state, state_why = null, changed_at = now(), changed_by = :by_whom, step_sent = 0,
    judged_from = case when :state = 'running' then now() else judged_from end
where id = :id
""")
_PACE: Final = sa.text(
    "update plans set rate = :rate, ramp = :ramp, stop_at = :stop_at, stop_window = :stop_window where id = :id"
)

#: What a person may do with a plan: in which states, and what becomes of it.
_DEEDS: Final[Mapping[str, tuple[frozenset[PlanState], PlanState]]] = {
    "apply": (frozenset({PlanState.PLANNED}), PlanState.RUNNING),
    "pause": (frozenset({PlanState.RUNNING}), PlanState.PAUSED),
    "resume": (frozenset({PlanState.PAUSED, PlanState.STOPPED}), PlanState.RUNNING),
    "abort": (frozenset(PlanState) - {PlanState.DONE, PlanState.ABORTED}, PlanState.ABORTED),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """What somebody wants to plan."""

    chosen: LetterFilter | Sequence[int]
    by_whom: str
    pace: Pace
    pool: str | None
    backend: str | None
    force: bool
    note: str | None
    limit: int | None
    check: Check | None


class Plans:
    """Plans for people: made, looked at, applied, paused, aborted. Every method raises DatabaseAway.

    default_deadline_seconds -- for orders that name none
    """

    def __init__(self, engine: sa.Engine, default_deadline_seconds: float) -> None:
        self._engine = engine
        self._deadline = default_deadline_seconds

    def make(
        self,
        chosen: LetterFilter | Sequence[int],
        by_whom: str,
        *,
        pace: Pace | None = None,
        pool: str | None = None,
        backend: str | None = None,
        force: bool = False,
        note: str | None = None,
        limit: int | None = None,
        check: Check | None = None,
    ) -> tuple[Plan, Preview] | Refused:
        """A plan with these letters and no others, whatever comes later; it does nothing until it is applied.

        chosen  -- by filter, or by id
        pace    -- may be changed again when it is applied
        pool    -- where the orders go instead of their own pool
        backend -- the only one that makes them; its pool is where they go
        force   -- also orders that another task of their order_id has completed; a right of editors
        note    -- what the person says about it
        limit   -- of a filter's letters only so many, the oldest
        check   -- what is wrong with an order for the pool they go to; nothing is planned before it has nothing to say
        """
        draft = _Draft(
            chosen=chosen,
            by_whom=by_whom,
            pace=pace or Pace(),
            pool=pool,
            backend=backend,
            force=force,
            note=note,
            limit=limit,
            check=check,
        )
        if problem := _pace_problem(draft.pace):
            return Refused(problem)
        return in_transaction(self._engine, lambda c: self._make(c, draft))

    def _make(self, c: sa.Connection, draft: _Draft) -> tuple[Plan, Preview] | Refused:
        backend, chosen = draft.backend, draft.chosen
        pool = pool_to(c, draft.pool, backend)
        if isinstance(pool, Refused):
            return pool
        ids = ids_in(c, chosen, draft.limit) if isinstance(chosen, LetterFilter) else sorted(set(chosen))
        despite = despite_of(draft.force)
        predictions = predictions_in(c, ids, self._deadline, despite=despite, pool=pool, backend=backend)
        letters = [p.letter_id for p in predictions]
        if missing := set(ids) - set(letters):
            return Refused(f"no such letter: {', '.join(map(str, sorted(missing)[:10]))}")
        if not letters:
            return Refused("no letter matches")
        going = [p.letter_id for p in predictions if p.way is Way.ROW]
        if pool is not None and draft.check is not None and (problem := misfits_in(c, going, pool, draft.check)):
            return Refused(problem)
        window = c.execute(_WINDOW, {"ids": letters}).one()
        said = _said(draft, window)
        values = {"chosen": said, "by_whom": draft.by_whom, "note": draft.note, "is_forced": draft.force}
        values |= {"pool": pool, "backend": backend}
        plan_id = int(c.execute(_INSERT, values | _pace_values(draft.pace)).scalar_one())
        items = {"plan": plan_id, "letters": letters, "predicted": [p.outcome for p in predictions]}
        c.execute(_INSERT_ITEMS, items)
        detail = {"chosen": said, "letters": len(letters), **_pace_values(draft.pace)}
        detail |= {"pool": pool} if pool is not None else {}
        detail |= {"backend": backend} if backend is not None else {}
        detail |= {"forced": True} if draft.force else {}
        detail |= {"note": draft.note} if draft.note is not None else {}
        note_action(c, draft.by_whom, "plan make", f"plan {plan_id}", detail)
        plan = _plan(c.execute(_GET, {"id": plan_id}).one())
        return plan, _preview(c, plan, predictions, window)

    def preview(self, plan_id: int) -> Preview | None:
        """What the plan would do now with the letters that wait; None: no such plan. Changes nothing."""

        def work(c: sa.Connection) -> Preview | None:
            found = c.execute(_GET, {"id": plan_id}).one_or_none()
            if found is None:
                return None
            plan = _plan(found)
            ids = list(c.execute(_WAITING, {"id": plan_id}).scalars())
            despite = despite_of(plan.is_forced)
            predictions = predictions_in(
                c, ids, self._deadline, despite=despite, pool=plan.pool, backend=plan.backend, known_at=plan.at
            )
            return _preview(c, plan, predictions, c.execute(_WINDOW, {"ids": ids}).one())

        return in_transaction(self._engine, work)

    def get(self, plan_id: int) -> Plan | None:
        """One plan with its progress."""
        found = in_transaction(self._engine, lambda c: c.execute(_GET, {"id": plan_id}).one_or_none())
        return None if found is None else _plan(found)

    def newest(self, limit: int, before: int | None = None) -> list[Plan]:
        """The newest plans, of those with an id below `before`."""
        values = {"limit": limit, "before": before if before is not None else 2**63 - 1}
        return [_plan(row) for row in in_transaction(self._engine, lambda c: c.execute(_NEWEST, values).all())]

    def items(
        self, plan_id: int, *, limit: int, after: int = 0, state: str | None = None, result: str | None = None
    ) -> list[PlanItem]:
        """Letters of a plan behind a place, in the order they go round."""
        values = {"id": plan_id, "limit": limit, "after": after, "state": state, "result": result}
        rows = in_transaction(self._engine, lambda c: c.execute(_ITEMS, values).all())
        return [PlanItem(**dict(row._mapping) | {"predicted": Outcome(row.predicted)}) for row in rows]

    def apply(self, plan_id: int, by_whom: str, pace: Pace | None = None) -> Plan | Refused:
        """planned -> running, in this person's name: from here on the ops service sends its letters."""
        if pace is not None and (problem := _pace_problem(pace)):
            return Refused(problem)
        return self._do("apply", plan_id, by_whom, pace)

    def pause(self, plan_id: int, by_whom: str) -> Plan | Refused:
        """running -> paused: what was sent goes on, nothing more is sent."""
        return self._do("pause", plan_id, by_whom)

    def resume(self, plan_id: int, by_whom: str) -> Plan | Refused:
        """paused or stopped -> running, at the beginning of the same step; failures so far no longer count."""
        return self._do("resume", plan_id, by_whom)

    def abort(self, plan_id: int, by_whom: str) -> Plan | Refused:
        """The letters that wait are never sent by this plan; what was sent goes on."""
        return self._do("abort", plan_id, by_whom)

    def _do(self, deed: str, plan_id: int, by_whom: str, pace: Pace | None = None) -> Plan | Refused:
        allowed, to = _DEEDS[deed]

        def work(c: sa.Connection) -> Plan | Refused:
            found = c.execute(_LOCK, {"id": plan_id}).one_or_none()
            if found is None:
                return Refused(f"there is no plan {plan_id}")
            if found.state not in allowed:
                return Refused(f"plan {plan_id} is {found.state}")
            if pace is not None:
                c.execute(_PACE, _pace_values(pace) | {"id": plan_id})
            c.execute(_CHANGE, {"id": plan_id, "state": to, "by_whom": by_whom})
            plan = _plan(c.execute(_GET, {"id": plan_id}).one())
            detail = {"was": found.state, "waiting": plan.progress.waiting}
            detail |= _pace_values(plan.pace) if to is PlanState.RUNNING else {}
            note_action(c, by_whom, f"plan {deed}", f"plan {plan_id}", detail)
            return plan

        return in_transaction(self._engine, work)


def _preview(c: sa.Connection, plan: Plan, predictions: Sequence[Prediction], window: sa.Row[Any]) -> Preview:
    going = [p.letter_id for p in predictions if p.outcome.goes]
    estimate = estimate_in(c, going, plan.pool, plan.backend)
    return Preview(
        letters=len(predictions),
        outcomes=Counter(p.outcome for p in predictions),
        forced=sum(p.superseded is not None for p in predictions),
        oldest=window.oldest,
        newest=window.newest,
        estimate=estimate,
        seconds=_seconds(len(going), plan.pace, estimate),
    )


def despite_of(force: bool) -> frozenset[Outcome]:
    """What is not refused when an editor forces it. An active task of the same order is beyond any force, and so is one
    that was completed after the plan was made, perhaps by the plan itself.
    """
    return frozenset({Outcome.SUPERSEDED}) if force else frozenset()


def _plan(row: sa.Row[Any]) -> Plan:
    values = dict(row._mapping)
    pace = Pace(**{name: values.pop(name) for name in ("rate", "ramp", "stop_at", "stop_window")})
    names = ("waiting", "sent", "completed", "failed", "cancelled", "published", "refused")
    progress = Progress(**{name: values.pop(name) for name in names})
    return Plan(**values | {"state": PlanState(row.state)}, pace=pace, progress=progress)


def _pace_values(pace: Pace) -> dict[str, Any]:
    return {"rate": pace.rate, "ramp": list(pace.ramp), "stop_at": pace.stop_at, "stop_window": pace.stop_window}


def _pace_problem(pace: Pace) -> str | None:
    if not 0 < pace.rate <= _MOST:  # no number is neither
        return f"the rate must be above 0 letters per second, and at most {_MOST}"
    if not all(1 <= step <= _MOST for step in pace.ramp) or len(pace.ramp) > _MOST_STEPS:
        return f"the ramp has at most {_MOST_STEPS} steps, each of 1 to {_MOST} letters"
    if pace.stop_at is not None and not 0 < pace.stop_at <= 1:
        return "the share of failures to stop at must be above 0 and at most 1"
    return None if 1 <= pace.stop_window <= _MOST else f"1 to {_MOST} last results can be looked at"


def _said(draft: _Draft, window: sa.Row[Any]) -> dict[str, Any]:
    """How letters were chosen: what a person said, and the window of time it turned out to be."""
    chosen = draft.chosen
    moments = {"oldest": window.oldest.isoformat(), "newest": window.newest.isoformat()}
    if not isinstance(chosen, LetterFilter):
        return {"ids": len(set(chosen)), **moments}
    until = chosen.until or window.now
    narrowed = {**asdict(chosen), "until": until, "limit": draft.limit}
    said = {name: value for name, value in narrowed.items() if value is not None}
    return {name: _plain(value) for name, value in said.items()} | moments


def _plain(value: object) -> int | str:
    return value if isinstance(value, int) else value.isoformat() if isinstance(value, datetime) else str(value)


def _seconds(going: int, pace: Pace, estimate: Estimate) -> float | None:
    """At the pace or as quickly as the backends work, whichever is slower, with a wait behind each step. Pure."""
    if estimate.work_seconds is None or estimate.order_seconds is None:
        return None
    waits = sum(1 for place in range(len(pace.ramp)) if sum(pace.ramp[:place]) < going)
    return max(going / pace.rate, estimate.work_seconds) + waits * estimate.order_seconds
