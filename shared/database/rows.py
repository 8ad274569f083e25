"""How a row of `tasks` becomes a Task."""

from typing import Any, Final

import sqlalchemy as sa

from shared.domain.task import Priority, Status, Task

#: Select list for a Task; the alias of `tasks` is always t.
TASK: Final = (
    "t.id, t.idempotency_key, t.order_id, t.fingerprint, t.pool, t.priority, t.body, t.status, t.version, t.attempt,"
    " t.charged, t.backend, t.job_key, t.provider_job_id, t.free_at, t.due_at, t.deadline_at, t.created_at,"
    " t.changed_at, t.cancel_owed, t.avoid_backend, t.reason, t.detail, t.stage, t.trace_id, t.told_at,"
    " t.job_handle, t.pinned_backend,"
    " clock_timestamp() as now"
)

#: Its columns, as `prepared` wants to know them.
TASK_COLUMNS: Final = tuple(column.rpartition(" ")[2].removeprefix("t.") for column in TASK.split(", "))

PRIORITIES: Final = (Priority.NORMAL, Priority.HIGH)


def task_of(row: sa.Row[Any], *, taken_over: bool = False, may_send: bool = True, is_probe: bool = False) -> Task:
    """The Task in a row whose select list ends with TASK."""
    # TASK is the last thing that is selected; by name each column would be looked up anew for every row.
    values = dict(zip(TASK_COLUMNS, row[-len(TASK_COLUMNS) :], strict=True))
    values["status"] = Status(values["status"])
    values["priority"] = PRIORITIES[values["priority"]]
    return Task(**values, taken_over=taken_over, may_send=may_send, is_probe=is_probe)
