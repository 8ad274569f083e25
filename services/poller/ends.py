"""What becomes of a row that was looked at: another attempt, an end and its last word, or a bug that fails it alone."""

import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

from services.poller.cancels import Cancels
from services.poller.in_hand import InHand
from shared.database.failures import after_failure, or_elsewhere
from shared.database.moves import Change
from shared.database.tasks import Tasks
from shared.domain.messages import Message, dead_letter, event
from shared.domain.outcome import FollowUp
from shared.domain.retry import Bug, RetryPolicy, tried
from shared.domain.task import Reason, Stage, Status, Task
from shared.observe.logs import bound
from shared.providers.base import Failed

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Found:
    """What a message's rows add up to; several threads add to it, and adding to a list or dict is one step.

    moved_on -- by id the attempt of rows that were no longer as they were read when they should move
    """

    then: list[Message] = field(default_factory=list)
    paid: list[FollowUp] = field(default_factory=list)
    moved_on: dict[uuid.UUID, int] = field(default_factory=dict)


class Ends:
    """For all threads; what is to be published goes into the `found` of the message that named the row."""

    def __init__(self, tasks: Tasks, cancels: Cancels, in_hand: InHand, retry: RetryPolicy) -> None:
        self._tasks = tasks
        self._cancels = cancels
        self._in_hand = in_hand
        self._retry = retry

    def again(self, row: Task, failed: Failed, found: Found) -> None:
        """Another attempt if the job's failure and the tries allow it, else the end."""
        once_more = not failed.once or self._tasks.attempts_ended(row, Reason.EXECUTION_FAILED) == 0
        change = after_failure(
            row,
            failed.reason,
            failed.why,
            retry=self._retry,
            retryable=failed.retryable and once_more,
            elsewhere=failed.elsewhere,
            outcome=failed.attempt_outcome,
        )
        if change.to is Status.FAILED:
            self._end(change, found)
        elif self._moved(change, found) is not None:
            log.warning("attempt failed", extra={"attempt": row.attempt, "reason": failed.reason, "why": failed.why})

    def fail(
        self, row: Task, reason: Reason, why: str, found: Found, *, charge: bool = False, cancel_owed: bool = False
    ) -> None:
        change = Change(
            task=row,
            to=Status.FAILED,
            reason=reason,
            detail=why,
            stage=Stage.SUBMIT if row.status is not Status.PROCESSING else Stage.CHECK,
            charge=charge,
            cancel_owed=cancel_owed,
            attempt_outcome=reason if row.status is not Status.PENDING else None,
        )
        self._end(or_elsewhere(change, made_a_job=True), found)

    def _end(self, change: Change, found: Found) -> None:
        failed = self._moved(change, found)
        if failed is not None and failed.status is Status.FAILED:
            log.warning("task failed", extra={"reason": change.reason, "why": change.detail})
            self.pay(failed, found)

    def _moved(self, change: Change, found: Found) -> Task | None:
        """The row after the move; None when it had moved on, which `found` then says."""
        moved = self._tasks.move([change]).get(change.task.id)
        if moved is None:
            found.moved_on[change.task.id] = change.task.attempt
        else:
            self._in_hand.has_moved(moved)
        return moved

    def guarded(self, row: Task, found: Found, work: Callable[[], None]) -> None:
        """A bug met with one row fails that row and not its neighbours."""
        with bound(trace_id=row.trace_id, task_id=row.id):
            outcome = tried(lambda _: work(), lambda _: None)
            if isinstance(outcome, Bug):
                self.bury(row, outcome, found)

    def bury(self, row: Task, bug: Bug, found: Found) -> None:
        """A row that cannot even be failed stays as it is, and comes due again."""

        def fail_it(_: int) -> None:
            now = self._tasks.refresh(row)
            if not now.status.is_final and now.attempt == row.attempt:
                owed = now.status is not Status.PENDING
                self.fail(now, Reason.BUG, bug.trace, found, cancel_owed=owed)

        if isinstance(tried(fail_it, lambda _: None), Bug):
            log.error("row left to its next look: it cannot be failed either", extra={"status": row.status})

    def pay(self, row: Task, found: Found) -> None:
        """The follow-up of a final row: its last word until that is confirmed, the cancel until nothing runs."""
        owed = row.cancel_owed and not self._cancels.is_settled(row)
        if row.told_at is None:
            found.then += self._last_word(row)
        elif owed:
            return
        found.paid.append(FollowUp(row.id, row.version, still_owed=owed))

    def _last_word(self, row: Task) -> list[Message]:
        """What the world is told of a final row."""
        match row.status:
            case Status.COMPLETED:
                return [event(row, "completed", self._tasks.artifacts([row.id]).get(row.id, []))]
            case Status.FAILED:
                return [dead_letter(row), event(row, "failed")]
            case Status.CANCELLED:
                return [event(row, "cancelled")]
            case Status.PENDING | Status.SUBMITTING | Status.PROCESSING:
                raise ValueError(f"{row.status} is not final")
            case _:
                assert_never(row.status)
