"""Looks at rows that are due: asks the provider once for many jobs, keeps their pictures, moves, pays what is owed."""

import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

from pydantic import ValidationError

from services.poller.cancels import Cancels
from services.poller.ends import Ends, Found
from services.poller.in_hand import InHand
from services.poller.looking import Looking
from services.poller.looks import count_looks
from services.poller.questions import Questions
from services.poller.runs import Runs
from services.poller.side_by_side import Fetch, Keep, Kept, Looked, SideBySide
from shared.database.slots import Slots
from shared.database.tasks import Tasks
from shared.domain.errors import Outage, ProviderAway, ProviderRejected, StorageAway
from shared.domain.messages import (
    TASK_CHECK,
    CheckTasks,
    Delivery,
    check,
    event,
)
from shared.domain.outcome import DeadLetter, Done, FollowUp, Outcome
from shared.domain.retry import Bug, RetryPolicy, killer, tried
from shared.domain.task import Reason, Stage, Status, Task
from shared.observe.logs import ContextPool, bound
from shared.observe.metrics import Metrics
from shared.pictures import BrokenPicture
from shared.providers.base import Failed, Gone, Job, JobState, Provider, Repeat, Running, Succeeded, Unclear
from shared.storage import Artifacts

log = logging.getLogger(__name__)


class Check:
    """Handler of check.<pool>. A check that finds a job still running writes nothing.

    max_run_seconds -- by backend: longest run of one job
    threads         -- for looking at the rows of a message side by side
    """

    def __init__(
        self,
        tasks: Tasks,
        slots: Slots,
        providers: Mapping[str, Provider],
        artifacts: Artifacts,
        *,
        retry: RetryPolicy,
        max_run_seconds: Mapping[str, float],
        frozen_after_seconds: float,
        metrics: Metrics,
        threads: ContextPool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tasks = tasks
        self._looking = Looking()
        self._in_hand = InHand()
        self._side_by_side = SideBySide(threads, self._in_hand)
        self._providers = providers
        self._artifacts = artifacts
        self._max_run = max_run_seconds
        self._metrics = metrics
        self._cancels = Cancels(tasks, slots, providers, frozen_after_seconds=frozen_after_seconds)
        self._ends = Ends(tasks, self._cancels, self._in_hand, retry)
        self._runs = Runs(clock)
        self._questions = Questions(clock)

    def handle(self, deliveries: Sequence[Delivery]) -> Sequence[Outcome]:
        """One outcome per message. Repeating one is safe: each row is decided by its status."""
        return [self._handle(delivery) for delivery in deliveries]

    def _handle(self, delivery: Delivery) -> Outcome:
        if delivery.type != TASK_CHECK:
            return _unknown(f"type {delivery.type!r} is not {TASK_CHECK}")
        try:
            message = CheckTasks.model_validate_json(delivery.body)
        except ValidationError as error:
            return _unknown(str(error))
        found = Found()
        if message.tasks:
            self._look_at(message, found, one_by_one=delivery.redelivered)
        elif message.backend is not None and not delivery.redelivered:  # else somebody may have died of what it found
            self._listen(message.pool, message.backend, found)
        if found.moved_on:
            self._walk_again(dict(found.moved_on), message.via, found)
        return Done(then=found.then, follow_up_of=found.paid)

    def _look_at(self, message: CheckTasks, found: Found, *, one_by_one: bool) -> None:
        """one_by_one -- somebody who had the message in hand may have died of one of its rows"""
        attempts = {ref.task_id: ref.attempt for ref in message.tasks}
        known = self._tasks.get(attempts)
        # In the order of the message: what vanishes first stands first.
        rows = [row for id_, attempt in attempts.items() if (row := known.get(id_)) and row.attempt == attempt]
        if not one_by_one:
            self._walk(rows, message.via, found)
            return
        for row in rows:
            if not self._in_hand.is_free(row):
                continue  # whoever has it in hand will say whether one survives it
            if not row.status.is_final and (bug := killer(self._tasks.begin_alone(row))):
                self._ends.bury(row, bug, found)
            else:
                self._walk([row], message.via, found)
            self._tasks.survived(row)

    def _walk(self, rows: Sequence[Task], via: Literal["poll", "push"], found: Found) -> None:
        running: dict[str, list[Task]] = {}
        for row in rows:
            if row.status is Status.PROCESSING and row.backend is not None:
                running.setdefault(row.backend, []).append(row)
            else:
                self._ends.guarded(row, found, partial(self._look, row, found))
        for backend, processing in running.items():
            if free := [row for row in processing if self._in_hand.is_free(row)]:
                self._ask(backend, free, via, found)

    def _walk_again(self, moved_on: Mapping[uuid.UUID, int], via: Literal["poll", "push"], found: Found) -> None:
        """Once more from where each row is now. Who ended one publishes its end, and its due_at sees to that."""
        now = [row for row in self._tasks.get(moved_on).values() if row.attempt == moved_on[row.id]]
        for row in now:
            if row.status is Status.COMPLETED:
                self._metrics.count("duplicates_suppressed_total", point="complete")
        self._walk([row for row in now if not row.status.is_final], via, found)

    def _listen(self, pool: str, backend: str, found: Found) -> None:
        """Which of our jobs ended there, however many are running. Only a hint: what is missed here comes due."""
        provider = self._providers.get(backend)
        if provider is None or not self._looking.begin(backend):
            return
        rows: dict[uuid.UUID | None, Task] = {}
        too_early: list[Task] = []  # a job that takes no time ends before its row can say that it runs

        def ours(job_ids: Sequence[str]) -> list[Job]:
            waiting = self._tasks.at_work(backend, job_ids)
            too_early.extend(row for row in waiting if row.status is Status.SUBMITTING)
            recorded = [row for row in waiting if row.status is Status.PROCESSING]
            rows.update({row.job_key: row for row in recorded})
            return [Job.of(row) for row in recorded]

        try:
            states = provider.ended(ours)
            self._decide_each([(rows[key], provider, state) for key, state in states.items()], "push", found)
        except ProviderAway as error:
            log.warning("backend did not answer", extra={"backend": backend, "why": str(error)})
        finally:
            is_asked_again = self._looking.end(backend)
        if is_asked_again or too_early:  # by a message of its own, so that what this one found can leave first
            found.then.append(check(pool, CheckTasks(pool=pool, backend=backend, via="push")))

    # --- rows whose provider need not be asked --------------------------------------------------------------------

    def _look(self, row: Task, found: Found) -> None:
        if row.status.is_final:
            if row.due_at is not None:
                self._ends.pay(row, found)
        elif row.is_past_deadline and row.status is Status.PENDING:
            self._ends.fail(row, Reason.DEADLINE, "the deadline passed while the order waited", found)
        elif row.is_past_deadline and row.status is Status.SUBMITTING and row.free_at <= row.now:
            if (doubt := self._doubt(row)) is not None:
                self._ends.fail(row, Reason.OUTCOME_UNKNOWN, f"{doubt}; the deadline passed", found)
                return
            # A cancel by its id or by job_key ends the job if there is one.
            self._ends.fail(row, Reason.DEADLINE, "the deadline passed while submitting", found, cancel_owed=True)

    def _doubt(self, row: Task) -> str | None:
        """What was searched for a job that may have been made, when its provider cannot tell."""
        provider, sent = self._providers.get(row.backend or ""), self._tasks.sent(row)
        if provider is None or sent.posts == 0:
            return None
        try:
            found = provider.recover(Job.of(row, sent))
        except ProviderAway:
            return None
        match found:
            case Repeat(searched=searched) | Unclear(searched=searched, resend=False):
                return searched
            case _:
                return None

    # --- rows at a provider ---------------------------------------------------------------------------------------

    def _ask(self, backend: str, rows: Sequence[Task], via: Literal["poll", "push"], found: Found) -> None:
        provider = self._providers.get(backend)
        states = tried(lambda _: self._states(provider, rows), lambda _: None)
        if isinstance(states, Bug):  # one of the rows is poison: asked for alone, it fails alone
            for row in rows:
                if len(rows) == 1:
                    self._ends.bury(row, states, found)
                else:
                    self._ask(backend, [row], via, found)
            return
        self._decide_each([(row, provider, states.get(Job.of(row).job_key)) for row in rows], via, found)

    def _decide_each(
        self,
        looked: Sequence[Looked],
        via: Literal["poll", "push"],
        found: Found,
    ) -> None:
        count_looks(self._metrics, [(row, state) for row, _, state in looked])
        self._side_by_side.decide(
            looked,
            lambda one, fetch, keep: self._ends.guarded(one[0], found, partial(self._decide, one, fetch, keep, found)),
            lambda kept: self._complete_all(kept, via, found),
        )

    def _states(self, provider: Provider | None, rows: Sequence[Task]) -> Mapping[uuid.UUID, JobState]:
        """What is known of each job now; nothing when the provider does not answer."""
        backend = rows[0].backend or ""
        began = None if provider is None else self._questions.begin(backend)
        if provider is None or began is None:
            return {}
        is_silent = False
        try:
            states = provider.check([Job.of(row) for row in rows])
        except ProviderAway as error:
            is_silent = True
            log.warning("backend did not answer", extra={"backend": backend, "why": str(error)})
            return {}
        finally:
            self._questions.end(backend, began, is_silent=is_silent)
        if provider.result_ttl_seconds is not None:
            self._tasks.seen_running(row.id for row in rows if isinstance(states.get(Job.of(row).job_key), Running))
        return states

    def _decide(self, looked: Looked, fetch: Fetch, keep: Keep, found: Found) -> None:
        """keep -- takes what is to be completed"""
        row, provider, state = looked
        if isinstance(state, Succeeded | Failed | Gone):
            self._has_ended(row)
        match state:
            case Succeeded() if provider is not None:
                self._fetch(row, state, fetch, keep, found)
            case Failed():
                self._ends.again(row, state, found)
            case Gone():
                lost = Failed(reason=Reason.LOST, why="the server has forgotten the job", retryable=True)
                self._ends.again(row, lost, found)
            case _ if row.is_past_deadline:
                self._ends.fail(row, Reason.DEADLINE, "the deadline passed while the job ran", found, cancel_owed=True)
            case Running(waiting=False) if provider is not None:
                self._limit(row, provider, keep, found)
            case _:
                pass  # it waits its turn there, or nothing was learned

    def _has_ended(self, row: Task) -> None:
        if row.job_key is not None:
            self._runs.forget(row.job_key)
        if (row.now - row.changed_at).total_seconds() > self._limit_of(row):  # any other one cannot have frozen it
            self._cancels.has_ended(row)

    def _limit_of(self, row: Task) -> float:
        return self._max_run.get(row.backend or "", float("inf"))

    def _fetch(self, row: Task, state: Succeeded, fetch: Fetch, keep: Keep, found: Found) -> None:
        """Write the job's pictures to the store and hand them on; else something else becomes of the row."""
        try:
            written = []
            for index, picture in enumerate(fetch()):
                with picture:
                    written.append(self._artifacts.write(row.id, row.attempt, index, picture))
        except ProviderAway as error:
            log.warning("picture not fetched yet", extra={"backend": row.backend, "why": str(error)})
            if row.is_past_deadline:
                self._ends.fail(row, Reason.DEADLINE, "the deadline passed while the pictures were fetched", found)
            return
        except StorageAway as error:
            self._not_stored(row, error, found)
            return
        except ProviderRejected as error:  # a picture too large to take
            self._ends.fail(row, error.reason, str(error), found, charge=True)
            return
        except (BrokenPicture, FileNotFoundError) as error:
            self._ends.again(
                row, Failed(reason=Reason.NO_OUTPUTS, why=str(error), retryable=True, elsewhere=True), found
            )
            return
        if not written:
            self._ends.again(
                row, Failed(reason=Reason.NO_OUTPUTS, why="the job made no picture", retryable=True), found
            )
        else:
            keep(Kept(row, state, written))

    def _not_stored(self, row: Task, error: StorageAway, found: Found) -> None:
        log.error("picture not stored yet", extra={"why": str(error)})
        if row.is_past_deadline:
            self._ends.fail(row, Reason.STORE_FAILED, str(error), found)

    def _complete_all(self, kept: Sequence[Kept], via: Literal["poll", "push"], found: Found) -> None:
        """One round to the disk and one transaction for all of them; when that meets a bug, for each alone."""
        if len(kept) > 1:
            try:
                self._complete(kept, via, found)
            except Outage:
                raise
            except Exception:  # one of them is poison; alone it is tried again, and its neighbours are not
                log.exception("rows taken apart", extra={"rows": len(kept)})
            else:
                return
        for one in kept:
            self._ends.guarded(one.row, found, partial(self._complete, [one], via, found))

    def _complete(self, kept: Sequence[Kept], via: Literal["poll", "push"], found: Found) -> None:
        try:
            self._artifacts.settle([picture for one in kept for picture in one.pictures])
        except StorageAway as error:
            for one in kept:
                self._not_stored(one.row, error, found)
            return
        moved = self._tasks.move_each([one.change for one in kept])
        for one, completed in zip(kept, moved, strict=True):
            if completed is None:
                found.moved_on[one.row.id] = one.row.attempt
            else:
                self._completed(one, completed, via, found)

    def _completed(self, one: Kept, completed: Task, via: Literal["poll", "push"], found: Found) -> None:
        self._in_hand.has_moved(completed)
        if one.state.finished_at is not None:
            backend, lag = one.row.backend or "", completed.changed_at.timestamp() - one.state.finished_at
            self._metrics.observe("completion_detection_seconds", lag, backend=backend, via=via)
            if lag < 0:
                self._metrics.count("clock_skew_total", backend=backend)
        with bound(trace_id=completed.trace_id, task_id=completed.id):
            said = {"from": one.row.status, "to": completed.status, "backend": one.row.backend}
            more = {"attempt": completed.attempt, "pictures": len(one.pictures)}
            log.info("task moved", extra={**said, **more, "duration_ms": one.row.lasted_ms(completed)})
        found.then.append(event(completed, "completed", one.pictures))
        found.paid.append(FollowUp(completed.id, completed.version))

    def _limit(self, row: Task, provider: Provider, keep: Keep, found: Found) -> None:
        """Cancel a job that has run for too long. One that was done before that could reach it is kept all the same."""
        limit = self._limit_of(row)
        ran = self._runs.seconds(row.job_key) if row.job_key is not None else 0.0
        if ran < limit:
            return
        try:
            gone = self._cancels.cancel(row, provider, ran - limit)
            state = provider.check([Job.of(row)]).get(Job.of(row).job_key) if gone else None
        except ProviderAway as error:
            log.warning("job over its limit, server does not answer", extra={"why": str(error)})
            return
        if not gone:
            return
        self._runs.forget(Job.of(row).job_key)
        if isinstance(state, Succeeded):
            self._fetch(row, state, partial(provider.fetch, Job.of(row), state.outputs), keep, found)
        else:
            why = f"still running after {limit:.0f} s"
            late = Failed(reason=Reason.ATTEMPTS_EXHAUSTED, why=why, retryable=True, elsewhere=True)
            self._ends.again(row, late, found)


def _unknown(detail: str) -> DeadLetter:
    return DeadLetter(reason=Reason.INVALID_MESSAGE, detail=detail, stage=Stage.CHECK)
