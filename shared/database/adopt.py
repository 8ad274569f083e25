"""A person names the provider job of a failed row that exists after all: the row waits for that job again."""

import re
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from shared.database.actions import note_action
from shared.database.engine import Anew, in_transaction
from shared.database.moves import Change, move_in
from shared.database.rows import TASK, task_of
from shared.domain.task import Status, Task

#: What a provider's id of a job may be: it becomes part of an address there.
JOB_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,199}")


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing was changed. why -- a sentence for a person."""

    why: str


#: Letters before their row, as a replay does it.
_LOCK_LETTERS: Final = sa.text("select id from dead_letters where task_id = :id order by id for update")
_LETTERS: Final = sa.text("select id from dead_letters where task_id = :id")
_LOCK_TASK: Final = sa.text(f"select {TASK} from tasks t where t.id = :id for no key update")
_ATTEMPT: Final = sa.text("""
select a.backend, a.job_key, b.capacity from attempts a join backends b on b.name = a.backend
where a.task_id = :id and a.attempt = :attempt for no key update of b
""")
#: A statement of its own, after the lock: one statement for both would not see what was taken while it waited.
_IN_FLIGHT: Final = sa.text("""
select count(*) from tasks
where backend = :backend and (status in ('submitting', 'processing') or cancel_owed)
""")
#: A row that failed while it waited stands nowhere, and the job may be elsewhere than its pin. The adopted job is its
#: last try: a wrong id ends as failed again and not as another picture.
_PREPARE: Final = sa.text("""
update tasks set backend = :backend, job_key = :job_key, pinned_backend = null, charged = greatest(charged, :tries - 1),
    deadline_at = greatest(deadline_at, now() + :deadline * interval '1 second')
where id = :id
""")
_REOPEN_ATTEMPT: Final = sa.text("""
update attempts set ended_at = null, outcome = null, detail = null, provider_job_id = :job,
    accepted_at = coalesce(accepted_at, now())
where task_id = :id and attempt = :attempt
""")
#: The collector opens it again when the row fails again.
_CLOSE_LETTERS: Final = sa.text("""
update dead_letters set state = 'replayed', closed_at = now(), closed_by = :by_whom
where task_id = :id and attempt = :attempt and state = 'open'
""")


def adopt(
    engine: sa.Engine, task: Task, job_id: str, by_whom: str, why: str, *, default_deadline: float, tries: int
) -> Task | Refused:
    """failed -> processing, with `job_id` as the job of its last attempt; the poller looks at it at once.

    default_deadline -- seconds the row has from now on when its order names none
    tries            -- charged attempts an order has
    """

    def work(c: sa.Connection) -> Task | Refused:
        letters = set(c.execute(_LOCK_LETTERS, {"id": task.id}).scalars())
        row = task_of(c.execute(_LOCK_TASK, {"id": task.id}).one())
        if not letters.issuperset(c.execute(_LETTERS, {"id": task.id}).scalars()):
            raise Anew("a letter came while its row was waited for")  # no other can come now: the collector waits
        obstacle = _obstacle(row)
        if obstacle is not None:
            return Refused(obstacle)
        attempt = c.execute(_ATTEMPT, {"id": row.id, "attempt": row.attempt}).one()
        if c.execute(_IN_FLIGHT, {"backend": attempt.backend}).scalar_one() >= attempt.capacity:
            return Refused(f"{attempt.backend} takes {attempt.capacity} at a time and is full: pause it and try again")
        deadline = float((row.body or {}).get("deadline_seconds") or default_deadline)
        place = {"backend": attempt.backend, "job_key": attempt.job_key}
        c.execute(_PREPARE, place | {"id": row.id, "tries": tries, "deadline": deadline})
        change = Change(
            task=row,
            to=Status.PROCESSING,
            reason="adopt",
            detail=why,
            provider_job_id=job_id,
            job_handle={},  # what stands there belongs to another job
            due_in=0.0,
        )
        moved = move_in(c, [change], by_whom)
        c.execute(_REOPEN_ATTEMPT, {"id": row.id, "attempt": row.attempt, "job": job_id})
        c.execute(_CLOSE_LETTERS, {"id": row.id, "attempt": row.attempt, "by_whom": by_whom})
        detail = {"job": job_id, "attempt": row.attempt, "backend": attempt.backend, "why": why}
        note_action(c, by_whom, "order adopt", str(row.id), detail)
        return moved[row.id]

    try:
        return in_transaction(engine, work)
    except sa.exc.IntegrityError as error:
        if getattr(getattr(error.orig, "diag", None), "constraint_name", None) != "tasks_one_active_order":
            raise
        return Refused(f"another task for order {task.order_id} is active")


def _obstacle(row: Task) -> str | None:
    """Why this row can adopt no job now; None when it can. Pure."""
    if row.status is not Status.FAILED:
        return f"it is {row.status}, only failed ones adopt a job"
    if row.attempt == 0:
        return "it was never sent anywhere, so no job can be its own"
    if row.cancel_owed:
        return "its last job is still being cancelled at the provider"
    if row.due_at is not None:
        return "its failure is still being told to its upstream system; try again in a minute"
    return None
