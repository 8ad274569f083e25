"""What a replay of each letter does now: the facts of a whole set in one statement, judged by one pure function."""

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

import sqlalchemy as sa

from shared.database.rooms import TAKES_WORK
from shared.domain.task import Reason, Stage, Status


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
class Facts:
    """A letter and its row, as far as a replay asks. What begins with task_ is None for a letter without a row."""

    letter_id: int
    state: str
    closed_by: str | None
    stage: str
    reason: str
    attempt: int | None
    is_whole: bool
    body_note: str | None
    task_id: uuid.UUID | None
    task_status: str | None
    task_attempt: int | None
    task_reason: str | None
    task_is_readable: bool | None
    task_owes_cancel: bool | None
    order_id: str | None
    pool: str | None
    deadline_seconds: float | None
    is_expired: bool | None
    is_blocked: bool | None
    backend: str | None
    is_backend_there: bool | None
    other_id: uuid.UUID | None
    other_is_completed: bool | None
    other_was_known: bool | None


#: Of other tasks of the same order_id an active one is named before a completed one, since no force helps against it,
#: and of completed ones the last.
_FACTS: Final = sa.text(f"""
select d.id as letter_id, d.state, d.closed_by, d.stage, d.reason, d.attempt,
    d.body is not null and not d.headers ? 'body' as is_whole, d.headers ->> 'body' as body_note,
    t.id as task_id, t.status as task_status, t.attempt as task_attempt, t.reason as task_reason,
    t.body is not null as task_is_readable, t.cancel_owed as task_owes_cancel, t.order_id,
    case when t.id is not null then coalesce(cast(:pool as text), t.pool) end as pool,
    cast(t.body ->> 'deadline_seconds' as float8) as deadline_seconds,
    t.created_at + cast(t.body ->> 'deadline_seconds' as float8) * interval '1 second' <= now() as is_expired,
    t.id is not null and not coalesce(case when cast(:backend as text) is null then w.takes_work else b.takes_work end,
        false) as is_blocked,
    case when t.id is not null then cast(:backend as text) end as backend,
    coalesce(b.enabled and b.pool = coalesce(cast(:pool as text), t.pool), false) as is_backend_there,
    o.id as other_id, o.status = 'completed' as other_is_completed,
    coalesce(o.finished_at <= cast(:known_at as timestamptz), true) as other_was_known
from dead_letters d
left join tasks t on t.id = d.task_id
left join (
    select b.pool, bool_or({TAKES_WORK}) as takes_work
    from backends b group by b.pool) w on w.pool = coalesce(cast(:pool as text), t.pool)
left join (select b.*, {TAKES_WORK} as takes_work from backends b) b on b.name = cast(:backend as text)
left join lateral (
    select s.id, s.status, s.finished_at from tasks s
    where s.order_id = t.order_id and s.id <> t.id
        and s.status in ('pending', 'submitting', 'processing', 'completed')
    order by s.status = 'completed', s.finished_at desc limit 1) o on t.status = 'failed'
where d.id = any(cast(:ids as bigint[]))
order by d.id
""")


def predictions_in(
    c: sa.Connection,
    letters: Sequence[int],
    default_deadline: float,
    *,
    despite: Collection[Outcome] = (),
    pool: str | None = None,
    backend: str | None = None,
    known_at: datetime | None = None,
) -> list[Prediction]:
    """What becomes of each when they go round together, in the caller's transaction, by id; unknown ids are missing.

    despite  -- outcomes that the caller does not want to be refused
    pool     -- where their orders are to be made instead of their own pool
    backend  -- the only one there that is to make them; None: any
    known_at -- when somebody decided so: what has been completed since then is refused all the same; None: now
    """
    values = {"ids": list(letters), "pool": pool, "backend": backend, "known_at": known_at}
    found: list[Prediction] = []
    tasks: set[uuid.UUID] = set()
    orders: set[str] = set()
    for row in c.execute(_FACTS, values):
        facts = Facts(**row._mapping)
        prediction = predicted(facts, default_deadline, despite)
        if prediction.way is Way.ROW and facts.task_id in tasks:
            prediction = _refused(facts, Outcome.IN_FLIGHT, "another letter about its task goes round before it")
        elif prediction.way is Way.ROW and facts.order_id in orders:
            why = f"another task for order {facts.order_id} goes round before it"
            prediction = _refused(facts, Outcome.SUPERSEDED, why)
        if prediction.way is Way.ROW:
            tasks |= {facts.task_id} if facts.task_id else set()
            orders |= {facts.order_id} if facts.order_id else set()
        found.append(prediction)
    return found


def predicted(facts: Facts, default_deadline: float, despite: Collection[Outcome] = ()) -> Prediction:
    """What a replay of one letter does in this state of affairs. Pure."""
    if facts.state != "open":
        return _refused(facts, Outcome.NOT_OPEN, f"already {facts.state} by {facts.closed_by}")
    if facts.task_id is None:
        return _predicted_message(facts)
    if obstacle := _obstacle(facts):
        return _refused(facts, *obstacle)
    if facts.task_reason == Reason.OUTCOME_UNKNOWN and Outcome.OUTCOME_UNKNOWN not in despite:
        commands = f"`darkroom order adopt`, `submit-again` or `give-up {facts.task_id}`"
        why = f"nobody knows whether its picture was made and paid for: {commands}"
        return _refused(facts, Outcome.OUTCOME_UNKNOWN, why)
    may_overlook = facts.other_is_completed and facts.other_was_known and Outcome.SUPERSEDED in despite
    if facts.other_id is not None and not may_overlook:
        state = "completed" if facts.other_is_completed else "active"
        why = f"another task for order {facts.order_id} is {state}: {facts.other_id}"
        return _refused(facts, Outcome.SUPERSEDED, why)
    return _row_goes(facts, facts.deadline_seconds or default_deadline)


def _obstacle(facts: Facts) -> tuple[Outcome, str] | None:
    """Why the letter's row cannot be pending again, whatever the caller wants."""
    if facts.task_status != Status.FAILED:
        outcomes = {Status.COMPLETED: Outcome.COMPLETED, Status.CANCELLED: Outcome.IMPOSSIBLE}
        outcome = outcomes.get(Status(facts.task_status or ""), Outcome.IN_FLIGHT)
        return outcome, f"its task is {facts.task_status}, only failed ones are replayed"
    if facts.task_attempt != facts.attempt:
        why = f"the letter is about attempt {facts.attempt}, the task failed at attempt {facts.task_attempt}"
        return Outcome.NOT_OPEN, why
    if not facts.task_is_readable:
        return Outcome.IMPOSSIBLE, "only the key of this order could be read, so the task has nothing to start"
    if facts.backend is not None and not facts.is_backend_there:
        return Outcome.IMPOSSIBLE, f"{facts.backend} serves pool {facts.pool} no more"
    if facts.task_owes_cancel:
        return Outcome.IN_FLIGHT, "its last job is still being cancelled at the provider; try again in a minute"
    return None


def _row_goes(facts: Facts, deadline: float) -> Prediction:
    where = f" at {facts.backend} alone" if facts.backend is not None else ""
    why = f"pending again after attempt {facts.attempt}{where}, with all tries and {_span(deadline)} of time"
    outcome = Outcome.WILL_RUN
    if facts.is_blocked:
        who = f"no backend of pool {facts.pool} takes work" if facts.backend is None else f"{facts.backend} takes none"
        outcome, why = Outcome.BLOCKED, f"{why}; {who}, so it waits"
    if facts.is_expired:
        outcome, why = Outcome.EXPIRED, f"{why}; the time that its order gave is over"
    if facts.task_reason == Reason.OUTCOME_UNKNOWN:
        why += "; the provider may have made its picture already, and will be paid for another one"
    if facts.other_id is not None:
        why += f"; its order {facts.order_id} is completed already as {facts.other_id}"
    return Prediction(
        letter_id=facts.letter_id,
        outcome=outcome,
        way=Way.ROW,
        why=why,
        reason=facts.reason,
        task_id=facts.task_id,
        pool=facts.pool,
        backend=facts.backend,
        deadline_seconds=deadline,
        superseded=facts.other_id,
    )


def _predicted_message(facts: Facts) -> Prediction:
    if facts.stage != Stage.ORDERS:
        why = "not an order but a note between our own services, which the scheduler makes again by itself: discard it"
        return _refused(facts, Outcome.IMPOSSIBLE, why)
    if not facts.is_whole:
        why = f"the message as it came was not kept: its body is {facts.body_note or 'not there'}"
        return _refused(facts, Outcome.IMPOSSIBLE, why)
    if facts.reason == Reason.CONFLICT:
        why = "its key belongs to another order, so it would conflict again: it needs a key of its own"
        return _refused(facts, Outcome.CONFLICT, why)
    why = "its body goes to `orders` once more"
    if facts.reason == Reason.INVALID_MESSAGE:
        why += "; it dies again unless what refused it has changed"
    return Prediction(
        letter_id=facts.letter_id, outcome=Outcome.WILL_RUN, way=Way.MESSAGE, why=why, reason=facts.reason
    )


def _refused(facts: Facts, outcome: Outcome, why: str) -> Prediction:
    return Prediction(
        letter_id=facts.letter_id,
        outcome=outcome,
        way=Way.REFUSED,
        why=why,
        reason=facts.reason,
        task_id=facts.task_id,
        pool=facts.pool,
    )


def _span(seconds: float) -> str:
    return f"{seconds / 3600:g} h" if seconds >= 3600 else f"{seconds:g} s"
