"""What becomes of a row whose attempt is over: back to pending, an end and its last word, or nothing to be done."""

import logging

from services.submitter.insist import Insist
from shared.database.failures import after_failure, or_elsewhere
from shared.database.moves import Change
from shared.database.tasks import Tasks
from shared.domain.messages import Message, dead_letter, event
from shared.domain.outcome import Done, FollowUp, Verdict
from shared.domain.retry import Bug, RetryPolicy
from shared.domain.task import Reason, Stage, Status, Task
from shared.providers.base import Failed

log = logging.getLogger(__name__)


class Ends:
    """For all threads."""

    def __init__(self, tasks: Tasks, insist: Insist, retry: RetryPolicy) -> None:
        self._tasks = tasks
        self._insist = insist
        self._retry = retry

    def badly(self, task: Task, failed: Failed) -> Verdict:
        """The provider made a job and the job is known to have failed: another attempt if tries are left."""
        change = after_failure(
            task, failed.reason, failed.why, retry=self._retry, retryable=failed.retryable, stage=Stage.SUBMIT
        )
        return self._ended(task, change)

    def broken(self, task: Task, why: str) -> Verdict:
        """The backend is at fault and made no job: that used up a try."""
        log.warning("provider is broken", extra={"backend": task.backend, "why": why})
        charged = task.charged + 1
        if not self._retry.has_tries_left(charged):
            return self.fail(task, Reason.ATTEMPTS_EXHAUSTED, f"{charged} attempts: {why}")
        return self.back_to_pending(task, why, self._retry.backoff_seconds(charged), is_broken=True)

    def without_input(self, task: Task, why: str) -> Verdict:
        """Not charged, since the provider was not asked; but a picture is asked for only as often as a job would be."""
        failures = self._insist(lambda: self._tasks.attempts_ended(task, Reason.INPUT_UNAVAILABLE)) + 1
        if not self._retry.has_tries_left(failures):
            return self.fail(task, Reason.INPUT_UNAVAILABLE, why)
        backoff = self._retry.backoff_seconds(failures)
        return self.back_to_pending(task, why, backoff, outcome=Reason.INPUT_UNAVAILABLE)

    def back_to_pending(
        self,
        task: Task,
        why: str,
        free_in: float,
        *,
        outcome: str = "not_created",
        is_broken: bool = False,
        pool: str | None = None,
    ) -> Verdict:
        """is_broken -- it is the backend's fault: the attempt counts, and the next one goes elsewhere if it can."""
        change = Change(
            task=task,
            to=Status.PENDING,
            detail=why,
            free_in=free_in,
            charge=is_broken,
            avoid_backend=task.backend if is_broken else None,
            attempt_outcome=outcome,
            pool=pool,
        )
        return self._ended(task, change)

    def fail(self, task: Task, reason: Reason, why: str, *, cancel_owed: bool = False) -> Verdict:
        change = Change(
            task=task,
            to=Status.FAILED,
            reason=reason,
            detail=why,
            stage=Stage.SUBMIT,
            charge=True,
            attempt_outcome=reason,
            cancel_owed=cancel_owed,
            due_in=0.0 if cancel_owed else 30.0,
        )
        if cancel_owed:
            self._insist(lambda: self._tasks.move([change]))
            return Done()  # check does the rest, or whoever moved the row: its due_at sees to it
        return self._ended(task, or_elsewhere(change, made_a_job=False))

    def bug(self, task: Task, bug: Bug) -> Verdict:
        """The row fails, this one alone. A job may exist: the row owes its cancelling before the follow-up is paid."""
        return self.fail(task, Reason.BUG, bug.trace, cancel_owed=True)

    def not_sent(self, task: Task) -> Verdict:
        """The row moved before anything was sent for it: a cancelled one owes no cancel and gives up its slot now."""
        now = self._insist(lambda: self._tasks.refresh(task))
        if now.version == task.version:
            return self.fail(task, Reason.DEADLINE, "the deadline passed while submitting")
        log.warning("row moved before its job was made", extra={"attempt": task.attempt, "status": now.status})
        return settled(now, task)

    def _ended(self, task: Task, change: Change) -> Verdict:
        """Make the move of a row whose attempt is over; its last word if that is its end."""
        moved = self._insist(lambda: self._tasks.move([change])).get(task.id)
        if moved is None:
            return self.not_sent(task)
        if moved.status is not Status.FAILED:
            log.warning("attempt ended", extra={"attempt": task.attempt, "why": change.detail})
            return Done()
        log.warning("task failed", extra={"reason": change.reason, "why": change.detail})
        then: list[Message] = [dead_letter(moved), event(moved, "failed")]
        return Done(then=then, follow_up_of=[FollowUp(moved.id, moved.version)])


def settled(now: Task, task: Task) -> Done:
    """Nothing we made of `task` is at the provider: a row cancelled in our hands owes its event and holds no slot.

    One that was taken over before (more than our one move ago) may have a POST of its new owner under way: its cancel
    stays owed until that owner, or check at the end of the lease, has seen to it.
    """
    if now.status is Status.CANCELLED and now.version == task.version + 1:
        return Done(then=[event(now, "cancelled")], follow_up_of=[FollowUp(now.id, now.version)])
    return Done()
