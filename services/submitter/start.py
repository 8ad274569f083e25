"""One row becomes a provider job: make the one POST, record its answer; ask first where one may have left before."""

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import Final

from services.submitter.ends import Ends, settled
from services.submitter.insist import Insist
from services.submitter.keep import Keep
from shared.database.slots import Slots
from shared.database.tasks import FRESH_SECONDS, Tasks
from shared.domain.errors import (
    AccountRefused,
    DarkroomError,
    DatabaseAway,
    InputLater,
    InputUnavailable,
    Outage,
    OutcomeUnknown,
    ProviderAway,
    ProviderBusy,
    ProviderRejected,
)
from shared.domain.fallback import following
from shared.domain.messages import event
from shared.domain.outcome import Done, Verdict
from shared.domain.retry import Bug, killer, tried
from shared.domain.task import Reason, Status, Task
from shared.gathered import Gathered
from shared.observe.logs import bound
from shared.observe.metrics import Metrics
from shared.providers.base import Accepted, Failed, Gone, GoOn, Job, Prepared, Provider, Repeat, Succeeded, Unclear

log = logging.getLogger(__name__)

#: A server that refused a connection gets work again when the poller has seen it answer; until then the row waits.
_BUSY_SECONDS: Final = 2.0
#: Answers about the lease that may come too late for a POST; a database that slow is as good as away.
_LATE_ANSWERS: Final = 5


class Start:
    """For all threads, each of which starts one row.

    first_look_seconds -- when the poller looks at a new job for the first time
    """

    def __init__(
        self,
        pool: str,
        tasks: Tasks,
        slots: Slots,
        providers: Mapping[str, Provider],
        *,
        ends: Ends,
        keep: Keep,
        insist: Insist,
        lease_seconds: float,
        first_look_seconds: float,
        metrics: Metrics,
    ) -> None:
        self._pool = pool
        self._tasks = tasks
        self._slots = slots
        self._providers = providers
        self._ends = ends
        self._keep = keep
        self._insist = insist
        self._lease = lease_seconds
        self._first_look = first_look_seconds
        self._metrics = metrics
        self._alone = Lock()
        # What is written at the same time shares a transaction.
        self._may_post = Gathered(self._begin_posts, passes=(Outage,))
        self._record_job = Gathered(self._record_jobs, passes=(Outage,))

    def __call__(self, task: Task) -> Verdict:
        """Start a row that was just taken."""
        return self._unless_away(task, self._start_alone if task.taken_over else self._start_once)

    def ask(self, task: Task) -> Verdict:
        """Go on with a row whose POST may have left: what became of it is asked first."""
        return self._unless_away(task, partial(self._start_once, ask_first=True))

    def go_on(self, task: Task, *, looked: float, rest: GoOn) -> Verdict:
        """Go on with a row whose POST has ended. looked -- our clock when the row became ours for one lease"""
        provider = self._providers[task.backend or ""]
        sent = partial(self._sent, task, provider, rest, looked)
        return self._unless_away(task, partial(self._start_once, sent=sent))

    def recorded(self, task: Task, now: Task) -> Verdict:
        """Of a row that was submitting and is processing now."""
        with bound(trace_id=task.trace_id, task_id=task.id):
            said = {"from": task.status, "to": now.status, "backend": task.backend, "attempt": task.attempt}
            log.info("task moved", extra={**said, "duration_ms": task.lasted_ms(now)})
        return Done(then=[event(now, "processing")])

    def note_a_late_one(self, task: Task, looked: float) -> None:
        """Count a POST that was still in flight when the lease ended, or that we stalled before: the two cases in which
        another owner may have found nothing and sent the job too.
        """
        if time.monotonic() - looked > self._lease - FRESH_SECONDS:
            self._possible_double(task, "the POST took longer than the lease")

    def _unless_away(self, task: Task, start: Callable[[Task], Verdict]) -> Verdict:
        with bound(trace_id=task.trace_id, task_id=task.id):
            try:
                return start(task)
            except Outage as error:
                # Nothing is owed to this permit: the row comes back when its lease is over.
                log.warning("outage while starting a task", extra={"why": str(error)})
                return Done()

    def _start_alone(self, task: Task) -> Verdict:
        """Its last owner may have died of it, so no other such row is begun meanwhile."""
        with self._alone:
            if bug := killer(self._insist(lambda: self._tasks.begin_alone(task))):
                return self._ends.bug(task, bug)
            verdict = self._start_once(task)
            self._insist(lambda: self._tasks.survived(task))
            return verdict

    def _start_once(self, task: Task, *, ask_first: bool = False, sent: Callable[[], Verdict] | None = None) -> Verdict:
        """sent -- what is left to be done of a row whose POST has ended"""
        found = tried(
            lambda before: self._try(task, ask_first=ask_first or before > 0, sent=sent), self._insist.stopping.wait
        )
        return self._ends.bug(task, found) if isinstance(found, Bug) else found

    def _try(self, task: Task, *, ask_first: bool, sent: Callable[[], Verdict] | None) -> Verdict:
        provider = self._providers[task.backend or ""]
        if task.taken_over:
            self._metrics.count("claims_total", pool=self._pool, result="reclaimed")
        try:
            if sent is not None and not ask_first:
                return sent()
            if (task.taken_over or ask_first) and (verdict := self._recovered(task, provider)) is not None:
                return verdict
            if not task.may_send:
                why = f"{task.backend} takes no work now, and never got the job"
                return self._ends.back_to_pending(task, why, 0.0)
            return self._send(task, provider)
        except AccountRefused as error:
            return self._refused(task, error)
        except ProviderBusy as error:
            return self._give_back(task, error)
        except ProviderRejected as error:
            return self._ends.fail(task, error.reason, str(error))
        except InputUnavailable as error:
            return self._ends.fail(task, Reason.INPUT_UNAVAILABLE, str(error))
        except InputLater as error:
            return self._ends.without_input(task, str(error))
        except OutcomeUnknown as error:
            return self._broken(task, provider, error) if error.was_answered else self._doubt(task, provider, error)
        except ProviderAway as error:
            return self._doubt(task, provider, error)

    def _send(self, task: Task, provider: Provider) -> Verdict:
        """Make the one POST, and record what was answered."""
        with self._may_post.on_the_way():
            prepared = provider.prepare(Job.of(task))
            looked = self._begin_post(task, provider, prepared)
        if looked is None:
            return self._ends.not_sent(task)
        return self._sent(task, provider, partial(provider.submit, prepared), looked)

    def _sent(self, task: Task, provider: Provider, submit: GoOn, looked: float) -> Verdict:
        with self._record_job.on_the_way():
            return self._answered(task, provider, self._post(task, submit, looked))

    def _answered(self, task: Task, provider: Provider, answer: Accepted | Succeeded | Failed) -> Verdict:
        match answer:
            case Accepted():
                return self._record(task, provider, answer)
            case Succeeded():
                return self._keep.keep(task, provider, answer)
            case Failed():
                return self._ends.badly(task, answer)

    def _recovered(self, task: Task, provider: Provider) -> Verdict | None:
        """What becomes of a row that may have been sent before; None: sending it makes no second job."""
        sent = self._insist(lambda: self._tasks.sent(task))
        found = provider.recover(Job.of(task, sent))
        match found:
            case Gone():
                return None
            case Accepted():
                self._metrics.count("duplicates_suppressed_total", point="submit")
                return self._record(task, provider, found)
            case Repeat(may_double=may_double):
                if may_double and task.may_send:
                    self._possible_double(task, f"sent again: {found.searched}")
                return self._repeat(task, provider, found.searched)
            case Unclear(ask_in=float(seconds)):
                log.warning("no trace of the job yet", extra={"backend": task.backend, "why": found.searched})
                self._insist(lambda: self._tasks.own_for(task, seconds, looked=True))
                return Done()
            case Unclear(resend=True) if not task.may_send:
                self._insist(lambda: self._tasks.own_for(task, self._lease))
                return Done()
            case Unclear(resend=True):
                self._possible_double(task, f"sent again: {found.searched}")
                return None
            case Unclear():
                return self._ends.fail(task, Reason.OUTCOME_UNKNOWN, found.searched)

    def _repeat(self, task: Task, provider: Provider, searched: str) -> Verdict:
        """The same POST while the first one may have made a job. Unless its own answer names one the doubt stays, and
        so does the row: at this attempt, whose key is the only one that may be used again, and in this pool.
        """
        wait = self._lease
        try:
            if task.may_send:
                return self._send(task, provider)
        except (ProviderRejected, InputUnavailable) as error:
            return self._ends.fail(task, Reason.OUTCOME_UNKNOWN, f"{searched}; sent again: {error}")
        except AccountRefused as error:
            self._close(task, error)
        except ProviderBusy as error:
            wait = self._keep_away(task, error)
        except InputLater as error:
            log.warning("input not there yet", extra={"why": str(error)})
        self._insist(lambda: self._tasks.own_for(task, wait))
        return Done()

    def _possible_double(self, task: Task, why: str) -> None:
        self._metrics.count("possible_double_total", backend=task.backend or "")
        log.error("possible double", extra={"backend": task.backend, "attempt": task.attempt, "why": why})

    def _post(self, task: Task, submit: GoOn, looked: float) -> Accepted | Succeeded | Failed:
        """What the provider answers. looked -- our clock when the row became ours for one lease"""
        try:
            answer = submit()
        except ProviderRejected:
            self._was_answered(task)
            raise
        else:
            self._was_answered(task)
            return answer
        finally:
            self.note_a_late_one(task, looked)

    def _was_answered(self, task: Task) -> None:
        """The provider looked at an order of this account, and said so."""
        name = task.backend or ""
        if task.is_probe and self._insist(lambda: self._slots.reopen(name)):
            log.info("backend health changed", extra={"backend": name, "health": "up"})

    def _doubt(self, task: Task, provider: Provider, error: ProviderAway | OutcomeUnknown) -> Verdict:
        """A job may exist. Nobody sends anything before the lease is over and the provider has been asked."""
        log.warning("provider gave no answer", extra={"backend": task.backend, "why": str(error)})
        if isinstance(error, OutcomeUnknown) and (error.may_arrive or error.ask_in is not None):
            seconds = self._lease if error.ask_in is None else error.ask_in
            self._insist(lambda: self._tasks.own_for(task, seconds, looked=error.may_arrive))
        match provider.is_alive():
            case False:
                self._down(task, error)
            case None if isinstance(error, OutcomeUnknown):
                self._silent(task, error)
        return Done()

    def _silent(self, task: Task, error: OutcomeUnknown) -> None:
        """Each order sent to a provider that loses its answers may end in doubt, so after a few the others wait."""
        if self._insist(lambda: self._slots.doubt(task.backend or "", str(error))):
            log.error("answers are lost: orders wait", extra={"backend": task.backend, "why": str(error)})

    def _broken(self, task: Task, provider: Provider, error: OutcomeUnknown) -> Verdict:
        """The provider answered with an error of its own. When it has no job either, that used up a try."""
        try:
            verdict = self._recovered(task, provider)
        except ProviderAway as away:
            return self._doubt(task, provider, away)
        if verdict is not None:
            return verdict
        return self._ends.broken(task, str(error))

    def _begin_posts(self, posts: Sequence[tuple[Task, str]]) -> Sequence[bool]:
        return self._tasks.may_post(posts, self._lease)

    def _record_jobs(self, accepted: Sequence[tuple[Task, Accepted]]) -> Sequence[Task | None]:
        return self._tasks.record(accepted, self._first_look)

    def _begin_post(self, task: Task, provider: Provider, prepared: Prepared) -> float | None:
        """Our clock when the row was ours for one lease, but for FRESH_SECONDS; None when nothing may be sent.

        An answer that was so long on its way that the lease could end during the POST counts for nothing: asked again,
        a few times. Raises DatabaseAway when it never comes in time; the row is taken over when its lease is over.
        """
        for _ in range(_LATE_ANSWERS):
            looked = time.monotonic()
            if not self._insist(lambda: self._may_post((task, prepared.body_hash))):
                return None
            if time.monotonic() - looked <= self._lease - FRESH_SECONDS - provider.submit_limit_seconds:
                return looked
            log.warning("lease answered too late", extra={"backend": task.backend})
        raise DatabaseAway(f"no answer within {self._lease - provider.submit_limit_seconds:g} s, {_LATE_ANSWERS} times")

    def _record(self, task: Task, provider: Provider, accepted: Accepted) -> Verdict:
        recorded = self._insist(lambda: self._record_job((task, accepted)))
        if recorded is not None:
            return self.recorded(task, recorded)
        now = self._insist(lambda: self._tasks.refresh(task))
        if now.attempt == task.attempt and now.status in {Status.SUBMITTING, Status.PROCESSING, Status.COMPLETED}:
            return Done()  # our own commit worked, or the new owner has the same job under the same key
        return self._undo(now, task, provider, accepted)

    def _undo(self, now: Task, task: Task, provider: Provider, accepted: Accepted) -> Verdict:
        """Nobody wants the job any more: the row was cancelled, has failed, or is at another attempt."""
        job = replace(Job.of(task), provider_job_id=accepted.provider_job_id, handle=accepted.handle)
        try:
            gone = provider.cancel(job)
        except ProviderAway as error:
            log.warning("job left to check", extra={"backend": task.backend, "why": str(error)})
            gone = False
        return settled(now, task) if gone else Done()

    def _refused(self, task: Task, error: AccountRefused) -> Verdict:
        """No order is at fault: it waits, and so do all others of this account."""
        self._close(task, error)
        return self._ends.back_to_pending(task, str(error), 0.0, pool=following(task))

    def _close(self, task: Task, error: AccountRefused) -> None:
        if self._insist(lambda: self._slots.refuse(task.backend or "", str(error))):
            log.error("account refused: its orders wait", extra={"backend": task.backend, "why": str(error)})

    def _give_back(self, task: Task, error: ProviderBusy) -> Verdict:
        wait = self._keep_away(task, error)
        return self._ends.back_to_pending(task, str(error), 0.0 if error.is_down else wait)

    def _keep_away(self, task: Task, error: ProviderBusy) -> float:
        """From a provider that is busy. Seconds that this row waits."""
        log.warning("provider busy", extra={"backend": task.backend, "why": str(error)})
        if error.is_down:
            self._down(task, error)
        if error.is_too_fast and (limit := self._insist(lambda: self._slots.too_fast(task))) is not None:
            log.warning("backend gets less at once", extra={"backend": task.backend, "limit": limit})
        if seconds := error.retry_after_seconds:
            self._insist(lambda: self._slots.pause(task.backend or "", None, str(error), seconds))
        return error.retry_after_seconds or random.uniform(0, _BUSY_SECONDS)

    def _down(self, task: Task, error: DarkroomError) -> None:
        self._insist(lambda: self._slots.set_health(task.backend or "", "down", str(error), only_from="up"))
