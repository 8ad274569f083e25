"""One step of a running plan, in one transaction: judge the results so far, send what the pace allows, note it.

The row of the plan is locked for the step, so of several ops processes one steps at a time, and a person who pauses
it waits for the end of a step and not longer. A process that dies in a step has done nothing; one that dies after it
has left letters that are on their way, whose messages others make: nothing is ever sent twice.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from shared.database.actions import note_action
from shared.database.engine import in_transaction
from shared.database.plans import PlanState, despite_of
from shared.database.predictions import Way
from shared.database.rounds import EventOwed, Replay, Rules, predicted_by, replay_in
from shared.domain.task import Task
from shared.observe.crash import CrashPoint, crash_point

#: Letters whose turn is looked at together; more are there in the next round.
_ROUND: Final = 100
#: Something is to be seen of a letter's message so long after it was confirmed, unless its order is a duplicate.
_UNSEEN_SECONDS: Final = 60
#: Rounds in one step: letters that are refused take no time of the pace, and a transaction must end soon.
_ROUNDS: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What was done.

    replays -- letters sent round, or refused
    owed    -- rows whose turn it is, and whose `failed` event must be out first
    """

    state: PlanState
    replays: Sequence[Replay] = ()
    owed: Sequence[Task] = field(default=())


_RUNNING: Final = sa.text("select id from plans where state = 'running' order by id")
#: What the pace allows is saved up for a second at most, or until it is one letter.
_LOCK: Final = sa.text("""
select p.id, p.at, p.changed_by, p.note, p.pool, p.backend, p.is_forced, p.rate, p.ramp, p.stop_at, p.stop_window,
    p.step, p.step_sent, p.judged_from, least(coalesce(extract(epoch from now() - p.paced_until)::float8, 'infinity'),
        greatest(1.0, 1.0 / p.rate)) as saved_seconds,
    exists (select 1 from plan_items i where i.plan_id = p.id and i.state = 'waiting') as is_waiting
from plans p where p.id = :id and p.state = 'running' for update skip locked
""")
_SERVES: Final = sa.text("select exists (select from backends where name = :backend and pool = :pool and enabled)")
_OPEN: Final = sa.text("select count(*) from plan_items where plan_id = :id and state = 'sent'")
#: A letter that was refused says nothing of how well the others fare.
_RESULTS: Final = sa.text("""
select count(*) as known, count(*) filter (where last.result = 'failed') as failed from (
    select i.result from plan_items i
    where i.plan_id = :id and i.state = 'ended' and i.result <> 'refused' and i.ended_at > :since
    order by i.ended_at desc, i.place desc limit :window) last
""")
#: Letters without a row. One whose message has died again is failed, whatever task there is of its key: it was in
#: conflict with it. A task that was there before belongs to another message.
_SETTLE: Final = sa.text("""
with sent as (
    select i.plan_id, i.place, i.dies_as, i.becomes, r.at, r.closed_at
    from plan_items i join replays r on r.id = i.replay_id
    where i.state = 'sent' and i.dies_as is not null for update of i skip locked
), known as (
    select s.plan_id, s.place,
        case when d.id is not null then 'failed' when t.created_at >= s.at then t.status else 'published' end as result,
        case when d.id is not null then 'it died again: letter ' || d.id || ', ' || d.reason
            when t.created_at >= s.at then 'it became task ' || t.id
            when t.id is not null then 'its key had a task before, which answers for it: ' || t.id
            else 'nothing was seen of it within ' || cast(:seconds as int) || ' s, neither a task nor a letter'
        end as why
    from sent s left join dead_letters d on d.identity = s.dies_as left join tasks t on t.id = s.becomes
    where d.id is not null
        or t.created_at >= s.at and t.status in ('completed', 'failed', 'cancelled')
        or coalesce(t.created_at < s.at, true) and s.closed_at <= now() - cast(:seconds as int) * interval '1 second'
)
update plan_items i set state = 'ended', result = known.result, why = known.why, ended_at = now() from known
where i.plan_id = known.plan_id and i.place = known.place
""")
#: Plans that are over and of which nothing is under way any more: nothing changes what they came to.
_COUNT: Final = sa.text("""
update plans p set counted = (
    select coalesce(jsonb_object_agg(coalesce(i.result, i.state), i.letters), '{}')
    from (select state, result, count(*) as letters from plan_items where plan_id = p.id group by state, result) i)
where p.state in ('done', 'aborted') and p.counted is null
    and not exists (select from plan_items i where i.plan_id = p.id and i.state = 'sent')
""")
_NEXT: Final = sa.text("""
select dead_letter_id as id from plan_items where plan_id = :id and state = 'waiting' and dead_letter_id > :after
order by place limit :limit
""")
_MARK: Final = sa.text("""
update plan_items i set state = v.state, result = v.result, why = v.why, replay_id = v.replay,
    ended_at = case when v.state = 'ended' then now() end
from unnest(cast(:letters as bigint[]), cast(:states as text[]), cast(:results as text[]), cast(:whys as text[]),
            cast(:replays as bigint[])) as v(letter, state, result, why, replay)
where i.plan_id = :id and i.dead_letter_id = v.letter and i.state = 'waiting'
""")
_STEPPED: Final = sa.text("""
update plans set step = :step, step_sent = :step_sent,
    paced_until = now() - (:saved - :sent / rate) * interval '1 second'
where id = :id
""")
_END: Final = sa.text("""
update plans set state = :state, state_why = :why, changed_at = now(), changed_by = :actor where id = :id
""")


class PlanSteps:
    """Running plans, for whoever carries them out. actor -- in whose name they end or stop themselves"""

    def __init__(self, engine: sa.Engine, actor: str, default_deadline_seconds: float) -> None:
        self._engine = engine
        self._actor = actor
        self._deadline = default_deadline_seconds

    def running(self) -> list[int]:
        """Plans that want to be carried out, by id."""
        return in_transaction(self._engine, lambda c: list(c.execute(_RUNNING).scalars()))

    def settle(self) -> None:
        """End the items of letters without a row of which it is known by now what their messages became, in any plan.

        What plans came to that are over is counted once and kept. Raises DatabaseAway.
        """
        in_transaction(self._engine, lambda c: c.execute(_SETTLE, {"seconds": _UNSEEN_SECONDS}))
        in_transaction(self._engine, lambda c: c.execute(_COUNT))

    def step(self, plan_id: int, paid: Mapping[uuid.UUID, int] | None = None) -> Step | None:
        """Take one step; None: it does not run, or another process is taking one.

        paid -- task -> version of its row whose `failed` event is out

        Raises DatabaseAway: it may have been taken, and the next one goes on from there.
        """

        def work(c: sa.Connection) -> Step | None:
            taken = self._step(c, plan_id, paid or {})
            if taken is not None and taken.replays:
                crash_point(CrashPoint.PLAN_STEPPING)
            return taken

        taken = in_transaction(self._engine, work)
        if taken is not None and taken.replays:
            crash_point(CrashPoint.PLAN_STEPPED)
        return taken

    def _step(self, c: sa.Connection, plan_id: int, paid: Mapping[uuid.UUID, int]) -> Step | None:
        plan = c.execute(_LOCK, {"id": plan_id}).one_or_none()
        if plan is None:
            return None
        under_way = int(c.execute(_OPEN, {"id": plan_id}).scalar_one())
        if not plan.is_waiting and not under_way:
            return self._end(c, plan, PlanState.DONE, None)
        if plan.is_waiting and (why := _too_many_failed(c, plan, under_way)):
            return self._end(c, plan, PlanState.STOPPED, why)
        if plan.is_waiting and plan.backend is not None and not _serves(c, plan):
            return self._end(c, plan, PlanState.STOPPED, f"{plan.backend} serves pool {plan.pool} no more")
        step, step_sent = plan.step, plan.step_sent
        if step < len(plan.ramp) and step_sent >= plan.ramp[step] and not under_way:
            step, step_sent = step + 1, 0  # judged just now, and fine
        allowed = int(plan.rate * plan.saved_seconds + 1e-6)
        if step < len(plan.ramp):
            allowed = min(allowed, plan.ramp[step] - step_sent)
        replays, owed = self._send(c, plan, allowed, paid) if plan.is_waiting and allowed > 0 else ([], [])
        sent = sum(replay.id is not None for replay in replays)
        if sent or step != plan.step:
            values = {"id": plan_id, "step": step, "step_sent": step_sent + sent, "sent": sent}
            c.execute(_STEPPED, values | {"saved": plan.saved_seconds})
        return Step(state=PlanState.RUNNING, replays=replays, owed=owed)

    def _send(
        self, c: sa.Connection, plan: sa.Row[Any], allowed: int, paid: Mapping[uuid.UUID, int]
    ) -> tuple[list[Replay], list[Task]]:
        """Send so many letters, in their order; those that are refused on the way count for nothing."""
        noted = {"plan": plan.id} | ({"why": plan.note} if plan.note is not None else {})
        rules = Rules(
            default_deadline=self._deadline,
            despite=despite_of(plan.is_forced),
            known_at=plan.at,
            pool=plan.pool,
            backend=plan.backend,
            paid=paid,
            noted=noted,
        )
        replays: list[Replay] = []
        after = 0
        for _ in range(_ROUNDS):
            waiting = list(c.execute(_NEXT, {"id": plan.id, "after": after, "limit": _ROUND}).scalars())
            letters = _head(c, waiting, allowed, rules)
            if not letters:
                break
            after = letters[-1]
            answers = replay_in(c, letters, plan.changed_by, rules)
            done = {letter: answer for letter, answer in answers.items() if isinstance(answer, Replay)}
            _mark(c, plan.id, done)
            replays += done.values()
            allowed -= sum(replay.id is not None for replay in done.values())
            owed = [answer.task for answer in answers.values() if isinstance(answer, EventOwed)]
            if owed or allowed < 1:
                return replays, owed
        return replays, []

    def _end(self, c: sa.Connection, plan: sa.Row[Any], state: PlanState, why: str | None) -> Step:
        c.execute(_END, {"id": plan.id, "state": state, "why": why, "actor": self._actor})
        word = {PlanState.DONE: "plan done", PlanState.STOPPED: "plan stopped"}[state]
        note_action(c, self._actor, word, f"plan {plan.id}", {} if why is None else {"why": why})
        return Step(state=state)


def _serves(c: sa.Connection, plan: sa.Row[Any]) -> bool:
    """Whether the plan's backend is there. One that is gone for a moment must not refuse its letters for good."""
    return bool(c.execute(_SERVES, {"backend": plan.backend, "pool": plan.pool}).scalar_one())


def _too_many_failed(c: sa.Connection, plan: sa.Row[Any], under_way: int) -> str | None:
    """Why the plan must stop. Judged by the last results, or by fewer when nothing else is under way."""
    if plan.stop_at is None:
        return None
    values = {"id": plan.id, "since": plan.judged_from, "window": plan.stop_window}
    results = c.execute(_RESULTS, values).one()
    if not results.known or (under_way and results.known < plan.stop_window):
        return None
    if results.failed / results.known < plan.stop_at:
        return None
    return f"{results.failed} of the last {results.known} failed, and it stops at {plan.stop_at:.0%}"


def _head(c: sa.Connection, waiting: Sequence[int], allowed: int, rules: Rules) -> list[int]:
    """The first of these letters, up to the last one that the pace allows; those to be refused count for nothing."""
    found = predicted_by(c, waiting, rules)
    going = [p.letter_id for p in found if p.way is not Way.REFUSED]
    last = going[allowed - 1] if len(going) >= allowed else waiting[-1] if waiting else 0
    return [letter for letter in waiting if letter <= last]


def _mark(c: sa.Connection, plan_id: int, done: Mapping[int, Replay]) -> None:
    if done:
        rows = [
            (letter, "sent", None, None, replay.id)
            if replay.id is not None
            else (letter, "ended", "refused", replay.prediction.why, None)
            for letter, replay in done.items()
        ]
        columns = dict(
            zip(("letters", "states", "results", "whys", "replays"), map(list, zip(*rows, strict=True)), strict=True)
        )
        c.execute(_MARK, {"id": plan_id, **columns})
