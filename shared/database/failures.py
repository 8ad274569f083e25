"""What becomes of a row whose attempt has failed: another attempt, another pool, or the end. Pure."""

from typing import Final

from shared.database.moves import Change
from shared.domain.fallback import next_pool
from shared.domain.retry import RetryPolicy
from shared.domain.task import Reason, Stage, Status, Task

#: Reasons that name themselves when the tries are used up; every other one ends as attempts_exhausted.
_OWN_END: Final = frozenset({Reason.LOST, Reason.NO_OUTPUTS, Reason.EXECUTION_FAILED})


def after_failure(
    row: Task,
    reason: Reason,
    why: str,
    *,
    retry: RetryPolicy,
    retryable: bool = True,
    elsewhere: bool = False,
    outcome: str | None = None,
    stage: Stage = Stage.CHECK,
) -> Change:
    """The move of a row whose job is known to have ended badly; the attempt is charged either way.

    retryable -- another attempt may work
    elsewhere -- it goes to another server if there is one
    outcome   -- the word that closes the attempt; the reason when None
    """
    charged = row.charged + 1
    ended = outcome or reason
    if not retryable or row.is_past_deadline:
        return _end(row, reason, why, ended, stage)
    if not retry.has_tries_left(charged):
        return _end(
            row, reason if reason in _OWN_END else Reason.ATTEMPTS_EXHAUSTED, f"{charged} attempts: {why}", ended, stage
        )
    return Change(
        task=row,
        to=Status.PENDING,
        reason=reason,
        detail=why,
        charge=True,
        free_in=retry.backoff_seconds(charged),
        avoid_backend=row.backend if elsewhere else None,
        attempt_outcome=ended,
    )


def or_elsewhere(end: Change, *, made_a_job: bool) -> Change:
    """The same end, or the way to the next pool of an order that has one. made_a_job -- see `next_pool`"""
    pool = next_pool(end.task, end.reason, made_a_job=made_a_job)
    if pool is None or end.cancel_owed:
        return end
    return Change(
        task=end.task,
        to=Status.PENDING,
        reason=end.reason,
        detail=end.detail,
        attempt_outcome=end.attempt_outcome,
        pool=pool,
    )


def _end(row: Task, reason: Reason, why: str, outcome: str, stage: Stage) -> Change:
    end = Change(
        task=row,
        to=Status.FAILED,
        reason=reason,
        detail=why,
        stage=stage,
        charge=True,
        attempt_outcome=outcome,
    )
    return or_elsewhere(end, made_a_job=True)
