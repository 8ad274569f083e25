"""The table `plans`: a frozen set of dead letters, the pace at which it goes round, and how far it has come."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from shared.database.actions import note_action
from shared.database.adopt import Refused
from shared.database.engine import in_transaction
from shared.database.estimates import estimate_in
from shared.database.letters import LetterFilter, ids_in
from shared.database.plan_rows import Pace, Plan, PlanItem, PlanState, Preview, Progress, kept, pace_values, plan_of
from shared.database.predictions import Outcome, Tally, Terms, planned_in, tally_in
from shared.database.redirects import Check, misfits_in, pool_to

__all__ = ["Pace", "Plan", "PlanItem", "PlanState", "Plans", "Preview", "Progress", "despite_of"]

#: Nobody means more than that: letters per second, letters in a step, results.
_MOST: Final = 10_000
_MOST_STEPS: Final = 100

_INSERT: Final = sa.text("""
insert into plans (by_whom, chosen, note, changed_by, pool, backend, is_forced, rate, ramp, stop_at, stop_window)
values (:by_whom, '{}', :note, :by_whom, :pool, :backend, :is_forced, :rate, :ramp, :stop_at, :stop_window)
returning id, at, backend
""")
#: A letter that is purged at this moment is waited for, and is not there afterwards; the others stay.
_LOCK_LETTERS: Final = sa.text(
    "select id from dead_letters where id = any(cast(:ids as bigint[])) order by id for key share"
)
_LETTERS: Final = sa.text("select dead_letter_id from plan_items where plan_id = :id")
#: What is kept of a plan when all its letters are known. The letters of one that is not applied all wait.
_CHOSEN: Final = sa.text("""
update plans set chosen = :chosen, counted = jsonb_build_object('waiting', cast(:letters as int)) where id = :id
""").bindparams(sa.bindparam("chosen", type_=sa.JSON))
_KEEP: Final = sa.text("""
update plans set preview = :preview, previewed_at = now() where id = :id and state = 'planned'
""").bindparams(sa.bindparam("preview", type_=sa.JSON))
_GOING: Final = sa.text("""
select i.dead_letter_id from plan_items i join dead_letters d on d.id = i.dead_letter_id
where i.plan_id = :id and i.predicted = any(cast(:going as text[])) and d.task_id is not null order by i.place
""")
#: Three stretches of partial indexes, whose entries are all the letters of a plan; none where they are counted already.
_PLANS: Final = """
select p.id, p.at, p.by_whom, p.chosen, p.note, p.state, p.state_why, p.changed_at, p.changed_by, p.pool,
    p.backend, p.is_forced, p.rate, p.ramp, p.stop_at, p.stop_window, p.step, p.preview, p.previewed_at,
    p.counted, w.*, s.*, e.*
from plans p
cross join lateral (
    select count(*) as waiting from plan_items
    where plan_id = p.id and state = 'waiting' and p.counted is null) w
cross join lateral (
    select count(*) as sent from plan_items where plan_id = p.id and state = 'sent' and p.counted is null) s
cross join lateral (
    select count(*) filter (where result = 'completed') as completed,
        count(*) filter (where result = 'failed') as failed, count(*) filter (where result = 'cancelled') as cancelled,
        count(*) filter (where result = 'published') as published, count(*) filter (where result = 'refused') as refused
    from plan_items where plan_id = p.id and result is not null and p.counted is null) e
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
_LOCK: Final = sa.text("select id, state, is_forced from plans where id = :id for update")
_ROW: Final = sa.text("select id, at, state, is_forced, pool, backend from plans where id = :id")
_CHANGE: Final = sa.text("""
update plans set state = :state, state_why = null, changed_at = now(), changed_by = :by_whom, step_sent = 0,
    judged_from = case when :state = 'running' then now() else judged_from end,
    counted = case when :state = 'running' then null else counted end
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


class _NotPlanned(Exception):
    """Why there is no plan; nothing of it stays."""


class Plans:
    """Plans for people: made, looked at, applied, paused, aborted. Every method raises DatabaseAway."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

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
        try:
            return in_transaction(self._engine, lambda c: self._make(c, draft))
        except _NotPlanned as problem:
            return Refused(str(problem))

    def _make(self, c: sa.Connection, draft: _Draft) -> tuple[Plan, Preview]:
        """Raises _NotPlanned: what was written must not be committed."""
        backend, chosen = draft.backend, draft.chosen
        pool = pool_to(c, draft.pool, backend)
        if isinstance(pool, Refused):
            raise _NotPlanned(pool.why)
        ids = ids_in(c, chosen, draft.limit) if isinstance(chosen, LetterFilter) else sorted(set(chosen))
        there = list(c.execute(_LOCK_LETTERS, {"ids": ids}).scalars())
        if isinstance(chosen, LetterFilter):
            ids = there
        values = {"by_whom": draft.by_whom, "note": draft.note, "is_forced": draft.force}
        values |= {"pool": pool, "backend": backend}
        new = c.execute(_INSERT, values | pace_values(draft.pace)).one()
        terms = Terms(despite=despite_of(draft.force), pool=pool, backend=backend)
        tally = planned_in(c, new.id, ids, terms)
        if tally.letters < len(ids):
            missing = sorted(set(ids) - set(c.execute(_LETTERS, {"id": new.id}).scalars()))
            raise _NotPlanned(f"no such letter: {', '.join(map(str, missing[:10]))}")
        if not ids:
            raise _NotPlanned("no letter matches")
        if pool is not None and draft.check is not None:
            going = list(c.execute(_GOING, {"id": new.id, "going": [one for one in Outcome if one.goes]}).scalars())
            if problem := misfits_in(c, going, pool, draft.check):
                raise _NotPlanned(problem)
        said = _said(draft, tally, new.at)
        c.execute(_CHOSEN, {"id": new.id, "chosen": said, "letters": tally.letters})
        detail = {"chosen": said, "letters": tally.letters, **pace_values(draft.pace)}
        detail |= {"pool": pool} if pool is not None else {}
        detail |= {"backend": backend} if backend is not None else {}
        detail |= {"forced": True} if draft.force else {}
        detail |= {"note": draft.note} if draft.note is not None else {}
        note_action(c, draft.by_whom, "plan make", f"plan {new.id}", detail)
        plan = _look(c, new, tally)
        assert plan.preview is not None  # noqa: S101 - just kept
        return plan, plan.preview

    def look(self, plan_id: int) -> Plan | Refused:
        """The plan with a preview of this moment, which is kept for whoever looks next; before it is applied alone."""

        def work(c: sa.Connection) -> Plan | Refused:
            found = c.execute(_ROW, {"id": plan_id}).one_or_none()
            if found is None:
                return Refused(f"there is no plan {plan_id}")
            if found.state != PlanState.PLANNED:
                return Refused(f"plan {plan_id} is {found.state}")
            terms = Terms(
                despite=despite_of(found.is_forced), known_at=found.at, pool=found.pool, backend=found.backend
            )
            return _look(c, found, tally_in(c, plan_id, terms))

        return in_transaction(self._engine, work)

    def get(self, plan_id: int) -> Plan | None:
        """One plan with its progress."""
        found = in_transaction(self._engine, lambda c: c.execute(_GET, {"id": plan_id}).one_or_none())
        return None if found is None else plan_of(found)

    def newest(self, limit: int, before: int | None = None) -> list[Plan]:
        """The newest plans, of those with an id below `before`."""
        values = {"limit": limit, "before": before if before is not None else 2**63 - 1}
        return [plan_of(row) for row in in_transaction(self._engine, lambda c: c.execute(_NEWEST, values).all())]

    def items(
        self, plan_id: int, *, limit: int, after: int = 0, state: str | None = None, result: str | None = None
    ) -> list[PlanItem]:
        """Letters of a plan behind a place, in the order they go round."""
        values = {"id": plan_id, "limit": limit, "after": after, "state": state, "result": result}
        rows = in_transaction(self._engine, lambda c: c.execute(_ITEMS, values).all())
        return [PlanItem(**dict(row._mapping) | {"predicted": Outcome(row.predicted)}) for row in rows]

    def apply(self, plan_id: int, by_whom: str, pace: Pace | None = None, *, may_force: bool = False) -> Plan | Refused:
        """planned -> running, in this person's name: from here on the ops service sends its letters.

        may_force -- whether the person may have orders paid for once more; without it a forced plan is refused
        """
        if pace is not None and (problem := _pace_problem(pace)):
            return Refused(problem)
        return self._do("apply", plan_id, by_whom, pace, may_force=may_force)

    def pause(self, plan_id: int, by_whom: str) -> Plan | Refused:
        """running -> paused: what was sent goes on, nothing more is sent."""
        return self._do("pause", plan_id, by_whom)

    def resume(self, plan_id: int, by_whom: str, *, may_force: bool = False) -> Plan | Refused:
        """paused or stopped -> running, at the beginning of the same step; failures so far no longer count.

        may_force -- as for `apply`: what is sent from here on is sent in this person's name
        """
        return self._do("resume", plan_id, by_whom, may_force=may_force)

    def abort(self, plan_id: int, by_whom: str) -> Plan | Refused:
        """The letters that wait are never sent by this plan; what was sent goes on."""
        return self._do("abort", plan_id, by_whom)

    def _do(
        self, deed: str, plan_id: int, by_whom: str, pace: Pace | None = None, *, may_force: bool = False
    ) -> Plan | Refused:
        allowed, to = _DEEDS[deed]

        def work(c: sa.Connection) -> Plan | Refused:
            found = c.execute(_LOCK, {"id": plan_id}).one_or_none()
            if found is None:
                return Refused(f"there is no plan {plan_id}")
            if found.state not in allowed:
                return Refused(f"plan {plan_id} is {found.state}")
            if to is PlanState.RUNNING and found.is_forced and not may_force:
                return Refused(f"plan {plan_id} pays once more for orders that are completed: an editor sends it")
            if pace is not None:
                c.execute(_PACE, pace_values(pace) | {"id": plan_id})
            c.execute(_CHANGE, {"id": plan_id, "state": to, "by_whom": by_whom})
            plan = plan_of(c.execute(_GET, {"id": plan_id}).one())
            detail = {"was": found.state, "waiting": plan.progress.waiting}
            detail |= pace_values(plan.pace) if to is PlanState.RUNNING else {}
            note_action(c, by_whom, f"plan {deed}", f"plan {plan_id}", detail)
            return plan

        return in_transaction(self._engine, work)


def _look(c: sa.Connection, plan: sa.Row[Any], tally: Tally) -> Plan:
    """The plan with what the tally says of its letters, which is kept."""
    preview = kept(tally, estimate_in(c, tally.orders, plan.backend))
    c.execute(_KEEP, {"id": plan.id, "preview": preview})
    return plan_of(c.execute(_GET, {"id": plan.id}).one())


def despite_of(force: bool) -> frozenset[Outcome]:
    """What is not refused when an editor forces it. An active task of the same order is beyond any force, and so is one
    that was completed after the plan was made, perhaps by the plan itself.
    """
    return frozenset({Outcome.SUPERSEDED}) if force else frozenset()


def _pace_problem(pace: Pace) -> str | None:
    if not 0 < pace.rate <= _MOST:  # no number is neither
        return f"the rate must be above 0 letters per second, and at most {_MOST}"
    if not all(1 <= step <= _MOST for step in pace.ramp) or len(pace.ramp) > _MOST_STEPS:
        return f"the ramp has at most {_MOST_STEPS} steps, each of 1 to {_MOST} letters"
    if pace.stop_at is not None and not 0 < pace.stop_at <= 1:
        return "the share of failures to stop at must be above 0 and at most 1"
    return None if 1 <= pace.stop_window <= _MOST else f"1 to {_MOST} last results can be looked at"


def _said(draft: _Draft, tally: Tally, now: datetime) -> dict[str, Any]:
    """How letters were chosen: what a person said, and the window of time it turned out to be."""
    chosen = draft.chosen
    window = {"oldest": tally.oldest, "newest": tally.newest}
    moments = {name: at.isoformat() for name, at in window.items() if at is not None}
    if not isinstance(chosen, LetterFilter):
        return {"ids": len(set(chosen)), **moments}
    until = chosen.until or now
    narrowed = {**asdict(chosen), "until": until, "limit": draft.limit}
    said = {name: value for name, value in narrowed.items() if value is not None}
    return {name: _plain(value) for name, value in said.items()} | moments


def _plain(value: object) -> int | str:
    return value if isinstance(value, int) else value.isoformat() if isinstance(value, datetime) else str(value)
