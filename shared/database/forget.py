"""A person says that a server is gone for good or was restarted: nothing that was sent there runs any more.

Only a person can know that. A frozen server that nobody restarted may still finish a job, and its order would then be
paid for twice.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

import sqlalchemy as sa

from shared.database.actions import note_action
from shared.database.engine import in_transaction
from shared.database.failures import after_failure
from shared.database.moves import Change, move_in
from shared.database.rows import TASK, task_of
from shared.domain.retry import RetryPolicy
from shared.domain.task import Reason, Stage, Status, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """What became of the rows of a forgotten backend; each a number of them.

    pending -- wait for another server
    failed  -- had no tries or no time left
    cancels -- had ended, and owe no cancelling any more
    left    -- are in the hands of a submitter until their lease is over: untouched
    """

    pending: int
    failed: int
    cancels: int
    left: int


class StillThere(Exception):
    """The backend is in use and answers: what runs there is looked after, and nothing was changed."""


#: The backend first and its rows then, as whoever takes rows does it.
_LOCK: Final = sa.text("select enabled, health from backends where name = :name for no key update")
_ROWS: Final = sa.text(f"""
select {TASK} from tasks t
where t.backend = :name and (t.status in ('submitting', 'processing') or t.cancel_owed)
order by t.id for no key update
""")
_DROP_CANCELS: Final = sa.text("""
update tasks set cancel_owed = false, due_at = case when told_at is null then now() end
where id = any(cast(:ids as uuid[]))
""")
#: `down` and not `up`: the poller says so itself as soon as the server answers.
_END_FREEZE: Final = sa.text("""
update backends set health = 'down', health_detail = :why, health_changed_at = now()
where name = :name and health = 'frozen'
""")


def forget_backend(engine: sa.Engine, name: str, by_whom: str, why: str, retry: RetryPolicy) -> Forgotten | None:
    """Its running jobs are lost and go elsewhere, charged; cancels owed to it are dropped. None: no such backend.

    Raises StillThere for one of the backends file that is up.
    """

    def work(c: sa.Connection) -> Forgotten | None:
        backend = c.execute(_LOCK, {"name": name}).one_or_none()
        if backend is None:
            return None
        if backend.enabled and backend.health == "up":
            raise StillThere(name)
        rows = [task_of(row) for row in c.execute(_ROWS, {"name": name})]
        free = [row for row in rows if row.provider_job_id is not None or row.free_at <= row.now]
        detail = f"{by_whom} says that {name} is gone or was restarted: {why}"
        changes = [_lost(row, detail, retry) for row in free if not row.status.is_final]
        moved = move_in(c, changes, by_whom)
        owed = [row for row in free if row.status.is_final]
        c.execute(_DROP_CANCELS, {"ids": [str(row.id) for row in owed]})
        c.execute(_END_FREEZE, {"name": name, "why": why})
        forgotten = Forgotten(
            pending=_count(moved.values(), Status.PENDING),
            failed=_count(moved.values(), Status.FAILED),
            cancels=len(owed),
            left=len(rows) - len(free),
        )
        counts = {"pending": forgotten.pending, "failed": forgotten.failed, "cancels": forgotten.cancels}
        note_action(c, by_whom, "backend forget", name, {"why": why} | counts)
        return forgotten

    return in_transaction(engine, work)


def _lost(row: Task, detail: str, retry: RetryPolicy) -> Change:
    """What was processing is a lost job. What nobody has known to be there costs no try."""
    if row.status is Status.PROCESSING:
        return replace(after_failure(row, Reason.LOST, detail, retry=retry, elsewhere=True), due_in=0.0)
    if row.is_past_deadline:
        return Change(
            task=row,
            to=Status.FAILED,
            reason=Reason.DEADLINE,
            detail=detail,
            stage=Stage.SUBMIT,
            due_in=0.0,
            attempt_outcome=Reason.LOST,
        )
    return Change(task=row, to=Status.PENDING, detail=detail, avoid_backend=row.backend, attempt_outcome=Reason.LOST)


def _count(rows: Iterable[Task], status: Status) -> int:
    return sum(row.status is status for row in rows)
