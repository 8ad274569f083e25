"""What transactions on `tasks` say to the metrics once they are committed; durations are those of the rows' stamps."""

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Protocol
from uuid import UUID

from shared.database.candidates import Candidate
from shared.database.moves import Change
from shared.domain.task import LEGAL_MOVES, Reason, Stage, Status, Task

_STEPS: Final = {Status.PENDING: "queue", Status.SUBMITTING: "submit", Status.PROCESSING: "execute"}


class Counter(Protocol):
    """What the tables need of the metrics."""

    def count(self, name: str, amount: float = 1, /, **labels: str) -> None: ...

    def observe(self, name: str, value: float, /, **labels: str) -> None: ...


class timed:
    """The transaction inside becomes one observation of database_seconds, whatever becomes of it."""

    __slots__ = ("_begun", "_metrics", "_operation")

    def __init__(self, metrics: Counter, operation: str) -> None:
        self._metrics = metrics
        self._operation = operation

    def __enter__(self) -> None:
        self._begun = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._metrics.observe("database_seconds", time.monotonic() - self._begun, operation=self._operation)


def count_moves(metrics: Counter, changes: Sequence[Change], moved: Mapping[UUID, Task]) -> None:
    """Wanted moves after their commit; those whose row is not in `moved` came too late."""
    for change in changes:
        after = moved.get(change.task.id)
        metrics.count(
            "transitions_total",
            from_status=change.task.status,
            to_status=change.to,
            result="applied" if after is not None else "stale",
        )
        if after is None:
            continue
        _observe_stay(metrics, change, after)
        if change.to is Status.PENDING:
            _count_retry(metrics, change)
        elif after.status.is_final:
            _count_finished(metrics, change, after)


def count_taken(metrics: Counter, before: Candidate, after: Task, why_late: str) -> None:
    """A row that a submitter has taken. why_late -- one of WAITS: what kept it if it had to wait"""
    metrics.count("transitions_total", from_status=before.status, to_status=after.status, result="applied")
    stay = (after.changed_at - before.changed_at).total_seconds()
    metrics.observe("order_stage_seconds", stay, pool=after.pool, stage=_STEPS[before.status])
    if before.status is Status.PENDING:
        waited = (after.changed_at - before.free_at).total_seconds()
        metrics.observe("backend_wait_seconds", waited, pool=after.pool, reason=why_late)


def count_forbidden(metrics: Counter, changes: Sequence[Change]) -> None:
    """The database refused the whole batch; these are the moves of it that are not legal."""
    for change in changes:
        pair = (change.task.status, change.to)
        if pair not in LEGAL_MOVES:
            metrics.count("transitions_total", from_status=pair[0], to_status=pair[1], result="forbidden")


def _observe_stay(metrics: Counter, change: Change, after: Task) -> None:
    """How long the row was where it has just left; a job that the backend says has ended was only waited for then."""
    before = change.task
    step = _STEPS.get(before.status)
    if step is None:
        return
    stay = (after.changed_at - before.changed_at).total_seconds()
    if step == "execute" and change.ended_at is not None:
        ran = min(max(0.0, change.ended_at - before.changed_at.timestamp()), stay)
        metrics.observe("order_stage_seconds", stay - ran, pool=before.pool, stage="detect")
        stay = ran
    metrics.observe("order_stage_seconds", stay, pool=before.pool, stage=step)


def _count_retry(metrics: Counter, change: Change) -> None:
    match change.task.status:
        case Status.SUBMITTING:
            stage = Stage.SUBMIT
        case Status.PROCESSING:
            stage = Stage.CHECK
        case _:
            return  # a replay, by a person
    metrics.count("retries_total", stage=stage, reason=change.attempt_outcome or change.reason or "other")
    if change.pool is not None:
        metrics.count("fallbacks_total", pool=change.task.pool)


def _count_finished(metrics: Counter, change: Change, task: Task) -> None:
    is_refused = task.status is Status.FAILED and task.reason is not None and Reason(task.reason).is_orders_fault
    outcome: Any = "refused" if is_refused else task.status
    metrics.count("orders_finished_total", pool=task.pool, outcome=outcome)
    if outcome in {Status.COMPLETED, Status.FAILED}:
        seconds = (task.changed_at - task.created_at).total_seconds()
        metrics.observe("order_duration_seconds", seconds, trace_id=task.trace_id, pool=task.pool, outcome=outcome)
        metrics.observe("task_attempts", task.attempt, pool=task.pool)
    for artifact in change.artifacts:
        metrics.observe("artifact_bytes", artifact.bytes, pool=task.pool)
