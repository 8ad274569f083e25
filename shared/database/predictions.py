"""What a replay of each letter does now: a whole set is judged by one statement, and put into words one by one.

Whoever looks ahead at a plan of 100,000 letters and whoever sends a hundred of them go by the same statement.
"""

import uuid
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa

from shared.database.rooms import TAKES_WORK
from shared.domain.task import Reason


class Outcome(StrEnum):
    """What becomes of a letter that is sent round; each letter has one."""

    WILL_RUN = "will_run"
    EXPIRED = "expired"  # the order's own deadline is over: it runs with a new one
    BLOCKED = "blocked"  # no backend of its pool takes work: it waits as pending
    COMPLETED = "completed"
    IN_FLIGHT = "in_flight"
    SUPERSEDED = "superseded"  # another task of its order_id is active or completed
    CONFLICT = "conflict"  # its key belongs to another order
    OUTCOME_UNKNOWN = "outcome_unknown"  # a picture may exist: a person decides about each
    NOT_OPEN = "not_open"  # somebody has decided already
    IMPOSSIBLE = "impossible"

    @property
    def goes(self) -> bool:
        """Whether the letter is sent round without further ado."""
        return self in _GOES


_GOES: Final = frozenset({Outcome.WILL_RUN, Outcome.EXPIRED, Outcome.BLOCKED})


class Way(StrEnum):
    """How a letter goes round again."""

    ROW = "row"  # failed -> pending
    MESSAGE = "message"  # it has no row: its body goes to `orders` once more
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a replay of this letter does now. why -- a sentence for a person.

    pool       -- where its order is made then
    backend    -- the only one there that may make it; None: any
    superseded -- the completed task of the same order_id that the caller wants to overlook
    """

    letter_id: int
    outcome: Outcome
    way: Way
    why: str
    reason: str
    task_id: uuid.UUID | None = None
    pool: str | None = None
    backend: str | None = None
    deadline_seconds: float | None = None
    superseded: uuid.UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What becomes of a whole set.

    outcomes -- how many of each; those that are missing are none
    forced   -- how many of those that run do so although another task has completed their order
    oldest, newest -- when its letters were last seen; None: there are none
    orders   -- (pool, workflow) -> how many orders are made there again
    """

    outcomes: Counter[Outcome]
    forced: int
    oldest: datetime | None
    newest: datetime | None
    orders: Counter[tuple[str, str | None]]

    @property
    def letters(self) -> int:
        return self.outcomes.total()


class _Verdict(StrEnum):
    """What the statement says of a letter; each stands for an outcome and a sentence."""

    DECIDED = "decided"
    NO_ORDER = "no_order"
    NOT_WHOLE = "not_whole"
    CONFLICTS = "conflicts"
    MESSAGE = "message"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    ACTIVE = "active"
    OTHER_ATTEMPT = "other_attempt"
    UNREADABLE = "unreadable"
    BACKEND_GONE = "backend_gone"
    OWES_CANCEL = "owes_cancel"
    DOUBTFUL = "doubtful"
    SUPERSEDED = "superseded"
    EXPIRED = "expired"
    BLOCKED = "blocked"
    RUNS = "runs"
    BEHIND_LETTER = "behind_letter"
    BEHIND_ORDER = "behind_order"


_OUTCOMES: Final[Mapping[_Verdict, Outcome]] = {
    _Verdict.DECIDED: Outcome.NOT_OPEN,
    _Verdict.NO_ORDER: Outcome.IMPOSSIBLE,
    _Verdict.NOT_WHOLE: Outcome.IMPOSSIBLE,
    _Verdict.CONFLICTS: Outcome.CONFLICT,
    _Verdict.MESSAGE: Outcome.WILL_RUN,
    _Verdict.COMPLETED: Outcome.COMPLETED,
    _Verdict.CANCELLED: Outcome.IMPOSSIBLE,
    _Verdict.ACTIVE: Outcome.IN_FLIGHT,
    _Verdict.OTHER_ATTEMPT: Outcome.NOT_OPEN,
    _Verdict.UNREADABLE: Outcome.IMPOSSIBLE,
    _Verdict.BACKEND_GONE: Outcome.IMPOSSIBLE,
    _Verdict.OWES_CANCEL: Outcome.IN_FLIGHT,
    _Verdict.DOUBTFUL: Outcome.OUTCOME_UNKNOWN,
    _Verdict.SUPERSEDED: Outcome.SUPERSEDED,
    _Verdict.EXPIRED: Outcome.EXPIRED,
    _Verdict.BLOCKED: Outcome.BLOCKED,
    _Verdict.RUNS: Outcome.WILL_RUN,
    _Verdict.BEHIND_LETTER: Outcome.IN_FLIGHT,
    _Verdict.BEHIND_ORDER: Outcome.SUPERSEDED,
}
_OF_ROWS: Final = frozenset({_Verdict.EXPIRED, _Verdict.BLOCKED, _Verdict.RUNS})

#: Of other tasks of the same order_id an active one is named before a completed one, since no force helps against it,
#: and of completed ones the last. Of letters about one task the first goes round, and of tasks of one order_id the
#: task of the first. Kept narrow before it is sorted: the bodies of 100,000 orders would be sorted with it.
_JUDGED: Final = """
with facts as (
    select d.id as letter_id, d.at, d.state, d.closed_by, d.stage, d.reason, d.attempt,
        d.body is not null and not d.headers ? 'body' as is_whole, d.headers ->> 'body' as body_note,
        t.id as task_id, t.status as task_status, t.attempt as task_attempt, t.reason as task_reason,
        t.body is not null as task_is_readable, t.cancel_owed as task_owes_cancel, t.order_id,
        case when t.id is not null then coalesce(cast(:pool as text), t.pool) end as pool,
        t.body ->> 'workflow' as workflow, cast(t.body ->> 'deadline_seconds' as float8) as deadline_seconds,
        t.created_at + cast(t.body ->> 'deadline_seconds' as float8) * interval '1 second' <= now() as is_expired,
        t.id is not null and not coalesce(
            case when cast(:backend as text) is null then w.takes_work else b.takes_work end, false) as is_blocked,
        case when t.id is not null then cast(:backend as text) end as backend,
        coalesce(b.enabled and b.pool = coalesce(cast(:pool as text), t.pool), false) as is_backend_there,
        o.id as other_id, o.status = 'completed' as other_is_completed,
        coalesce(o.finished_at <= cast(:known_at as timestamptz), true) as other_was_known
    from dead_letters d
    left join tasks t on t.id = d.task_id
    left join (
        select b.pool, bool_or({takes_work}) as takes_work
        from backends b group by b.pool) w on w.pool = coalesce(cast(:pool as text), t.pool)
    left join (select b.*, {takes_work} as takes_work from backends b) b on b.name = cast(:backend as text)
    left join lateral (
        select s.id, s.status, s.finished_at from tasks s
        where s.order_id = t.order_id and s.id <> t.id
            and s.status in ('pending', 'submitting', 'processing', 'completed')
        order by s.status = 'completed', s.finished_at desc limit 1) o on t.status = 'failed'
    where {letters}
), alone as materialized (
    select f.letter_id, f.at, f.state, f.closed_by, f.reason, f.attempt, f.body_note, f.task_id, f.task_status,
        f.task_attempt, f.task_reason, f.order_id, f.pool, f.workflow, f.deadline_seconds, f.is_blocked, f.backend,
        f.other_id, f.other_is_completed, case
        when f.state <> 'open' then 'decided'
        when f.task_id is null and f.stage <> 'orders' then 'no_order'
        when f.task_id is null and not f.is_whole then 'not_whole'
        when f.task_id is null and f.reason = 'conflict' then 'conflicts'
        when f.task_id is null then 'message'
        when f.task_status in ('completed', 'cancelled') then f.task_status
        when f.task_status <> 'failed' then 'active'
        when f.task_attempt is distinct from f.attempt then 'other_attempt'
        when not f.task_is_readable then 'unreadable'
        when f.backend is not null and not f.is_backend_there then 'backend_gone'
        when f.task_owes_cancel then 'owes_cancel'
        when f.task_reason = 'outcome_unknown' and not :unknown_too then 'doubtful'
        when f.other_id is not null
            and not (:superseded_too and f.other_is_completed and f.other_was_known) then 'superseded'
        when f.is_expired then 'expired'
        when f.is_blocked then 'blocked'
        else 'runs' end as verdict
    from facts f
), rounds as (
    select a.*, a.verdict in ('expired', 'blocked', 'runs') as goes from alone a
), judged as (
    select r.*, case
        when not r.goes then r.verdict
        when r.order_id is not null and r.task_id <>
            first_value(r.task_id) over (partition by r.goes, r.order_id order by r.letter_id) then 'behind_order'
        when row_number() over (partition by r.goes, r.task_id order by r.letter_id) > 1 then 'behind_letter'
        else r.verdict end as judgement
    from rounds r
)
"""
_THESE: Final = _JUDGED.format(letters="d.id = any(cast(:ids as bigint[]))", takes_work=TAKES_WORK)
_WAITING: Final = _JUDGED.format(
    letters="d.id in (select i.dead_letter_id from plan_items i where i.plan_id = :plan and i.state = 'waiting')",
    takes_work=TAKES_WORK,
)
_TALLY: Final = """
select judgement, pool, workflow, count(*) as letters, count(other_id) as others, min(at) as oldest, max(at) as newest
from judged group by judgement, pool, workflow
"""
_ONE_BY_ONE: Final = sa.text(f"{_THESE} select * from judged order by letter_id")
_TALLY_WAITING: Final = sa.text(f"{_WAITING} {_TALLY}")
_INTO_PLAN: Final = sa.text(f"""
{_THESE}, items as (
    insert into plan_items (plan_id, place, dead_letter_id, predicted)
    select :plan, row_number() over (order by j.letter_id), j.letter_id, o.outcome
    from judged j
    join unnest(cast(:judgements as text[]), cast(:outcomes as text[])) as o(judgement, outcome)
        on o.judgement = j.judgement
    order by j.letter_id
)
{_TALLY}
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """By what letters are judged.

    despite  -- outcomes that are not refused this time, because somebody has decided so
    known_at -- when they did: what has been completed since then is refused all the same; None: now
    pool     -- where the orders are made instead of their own pool
    backend  -- the only one there that makes them; None: any
    """

    despite: Collection[Outcome] = ()
    known_at: datetime | None = None
    pool: str | None = None
    backend: str | None = None


def predictions_in(
    c: sa.Connection, letters: Sequence[int], default_deadline: float, terms: Terms | None = None
) -> list[Prediction]:
    """What becomes of each when they go round together, in the caller's transaction, by id; unknown ids are missing.

    default_deadline -- seconds for orders that name none
    """
    values = _values(terms or Terms()) | {"ids": list(letters)}
    return [_prediction(row, default_deadline) for row in c.execute(_ONE_BY_ONE, values)]


def planned_in(c: sa.Connection, plan_id: int, letters: Sequence[int], terms: Terms) -> Tally:
    """The letters are items of this plan, with what is predicted of each; unknown ids are missing."""
    names = {"judgements": list(_OUTCOMES), "outcomes": list(_OUTCOMES.values())}
    return _tally(c.execute(_INTO_PLAN, _values(terms) | names | {"plan": plan_id, "ids": list(letters)}).all())


def tally_in(c: sa.Connection, plan_id: int, terms: Terms) -> Tally:
    """What would become of the letters of this plan that wait. Writes nothing."""
    return _tally(c.execute(_TALLY_WAITING, _values(terms) | {"plan": plan_id}).all())


def _values(terms: Terms) -> dict[str, Any]:
    return {
        "pool": terms.pool,
        "backend": terms.backend,
        "known_at": terms.known_at,
        "unknown_too": Outcome.OUTCOME_UNKNOWN in terms.despite,
        "superseded_too": Outcome.SUPERSEDED in terms.despite,
    }


def _tally(rows: Sequence[sa.Row[Any]]) -> Tally:
    outcomes: Counter[Outcome] = Counter()
    orders: Counter[tuple[str, str | None]] = Counter()
    for row in rows:
        verdict = _Verdict(row.judgement)
        outcomes[_OUTCOMES[verdict]] += row.letters
        if verdict in _OF_ROWS:
            orders[row.pool, row.workflow] += row.letters
    return Tally(
        outcomes=outcomes,
        forced=sum(row.others for row in rows if row.judgement in _OF_ROWS),
        oldest=min((row.oldest for row in rows), default=None),
        newest=max((row.newest for row in rows), default=None),
        orders=orders,
    )


def _prediction(row: sa.Row[Any], default_deadline: float) -> Prediction:
    verdict = _Verdict(row.judgement)
    is_row = verdict in _OF_ROWS
    deadline = row.deadline_seconds or default_deadline
    return Prediction(
        letter_id=row.letter_id,
        outcome=_OUTCOMES[verdict],
        way=Way.ROW if is_row else Way.MESSAGE if verdict is _Verdict.MESSAGE else Way.REFUSED,
        why=_of_row(row, verdict, deadline) if is_row else _SENTENCES[verdict](row),
        reason=row.reason,
        task_id=row.task_id,
        pool=row.pool,
        backend=row.backend if is_row else None,
        deadline_seconds=deadline if is_row else None,
        superseded=row.other_id if is_row else None,
    )


def _of_row(row: sa.Row[Any], verdict: _Verdict, deadline: float) -> str:
    """Why, of a row that will be pending again."""
    where = f" at {row.backend} alone" if row.backend is not None else ""
    why = f"pending again after attempt {row.attempt}{where}, with all tries and {_span(deadline)} of time"
    if row.is_blocked:
        who = f"no backend of pool {row.pool} takes work" if row.backend is None else f"{row.backend} takes none"
        why += f"; {who}, so it waits"
    if verdict is _Verdict.EXPIRED:
        why += "; the time that its order gave is over"
    if row.task_reason == Reason.OUTCOME_UNKNOWN:
        why += "; the provider may have made its picture already, and will be paid for another one"
    if row.other_id is not None:
        why += f"; its order {row.order_id} is completed already as {row.other_id}"
    return why


def _of_status(row: sa.Row[Any]) -> str:
    return f"its task is {row.task_status}, only failed ones are replayed"


def _of_message(row: sa.Row[Any]) -> str:
    again = "; it dies again unless what refused it has changed" if row.reason == Reason.INVALID_MESSAGE else ""
    return f"its body goes to `orders` once more{again}"


_SENTENCES: Final[Mapping[_Verdict, Callable[[sa.Row[Any]], str]]] = {
    _Verdict.DECIDED: lambda row: f"already {row.state} by {row.closed_by}",
    _Verdict.NO_ORDER: lambda _: (
        "not an order but a note between our own services, which the scheduler makes again by itself: discard it"
    ),
    _Verdict.NOT_WHOLE: lambda row: f"the message as it came was not kept: its body is {row.body_note or 'not there'}",
    _Verdict.CONFLICTS: lambda _: (
        "its key belongs to another order, so it would conflict again: it needs a key of its own"
    ),
    _Verdict.MESSAGE: _of_message,
    _Verdict.COMPLETED: _of_status,
    _Verdict.CANCELLED: _of_status,
    _Verdict.ACTIVE: _of_status,
    _Verdict.OTHER_ATTEMPT: lambda row: (
        f"the letter is about attempt {row.attempt}, the task failed at attempt {row.task_attempt}"
    ),
    _Verdict.UNREADABLE: lambda _: "only the key of this order could be read, so the task has nothing to start",
    _Verdict.BACKEND_GONE: lambda row: f"{row.backend} serves pool {row.pool} no more",
    _Verdict.OWES_CANCEL: lambda _: "its last job is still being cancelled at the provider; try again in a minute",
    _Verdict.DOUBTFUL: lambda row: (
        "nobody knows whether its picture was made and paid for: `darkroom order adopt`, `submit-again` or"
        f" `give-up {row.task_id}`"
    ),
    _Verdict.SUPERSEDED: lambda row: (
        f"another task for order {row.order_id} is {'completed' if row.other_is_completed else 'active'}:"
        f" {row.other_id}"
    ),
    _Verdict.BEHIND_LETTER: lambda _: "another letter about its task goes round before it",
    _Verdict.BEHIND_ORDER: lambda row: f"another task for order {row.order_id} goes round before it",
}


def _span(seconds: float) -> str:
    return f"{seconds / 3600:g} h" if seconds >= 3600 else f"{seconds:g} s"
