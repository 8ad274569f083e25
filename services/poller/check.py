"""Looks at rows that are due: asks the provider once for many jobs, keeps their pictures, moves, pays what is owed."""

import logging
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Final, Literal, assert_never

from pydantic import ValidationError

from shared.database.moves import Change
from shared.database.slots import Slots
from shared.database.tasks import Tasks
from shared.domain.errors import Outage, ProviderAway, ProviderRejected, StorageAway
from shared.domain.messages import (
    TASK_CHECK,
    Artifact,
    CheckTasks,
    Delivery,
    Message,
    dead_letter,
    event,
)
from shared.domain.outcome import DeadLetter, Done, FollowUp, Outcome
from shared.domain.retry import Bug, RetryPolicy, tried
from shared.domain.task import Reason, Stage, Status, Task
from shared.gathered import Gathered
from shared.observe.logs import ContextPool, bound
from shared.observe.metrics import Metrics
from shared.pictures import BrokenPicture
from shared.providers.base import Failed, Gone, Job, JobState, Provider, Running, Succeeded
from shared.storage import Artifacts

log = logging.getLogger(__name__)

#: Reasons that name themselves when the tries are used up; every other one ends as attempts_exhausted.
_OWN_END: Final = frozenset({Reason.LOST, Reason.NO_OUTPUTS, Reason.EXECUTION_FAILED})


@dataclass(slots=True)
class _Found:
    """What a message's rows add up to; several threads add to it, and adding to a list is one step."""

    then: list[Message] = field(default_factory=list)
    paid: list[FollowUp] = field(default_factory=list)


class _Looking:
    """One look per backend at a time; whoever comes meanwhile makes the one under way look once more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._again: dict[str, bool] = {}

    def begin(self, backend: str) -> bool:
        """False: somebody is looking, and will look again."""
        with self._lock:
            is_free = backend not in self._again
            self._again[backend] = not is_free
            return is_free

    def end(self, backend: str) -> bool:
        """False: look once more."""
        with self._lock:
            if self._again[backend]:
                self._again[backend] = False
                return False
            del self._again[backend]
            return True

    def give_up(self, backend: str) -> None:
        with self._lock:
            del self._again[backend]


class Check:
    """Handler of check.<pool>. A check that finds a job still running writes nothing.

    max_run_seconds      -- by backend: longest run of one job
    threads              -- for looking at the rows of a message side by side
    frozen_after_seconds -- a job that outlives its cancelling by so long means the server's worker is dead
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
    ) -> None:
        self._tasks = tasks
        self._move = Gathered(tasks.move_each, passes=(Outage,))
        self._threads = threads
        self._looking = _Looking()
        self._slots = slots
        self._providers = providers
        self._artifacts = artifacts
        self._retry = retry
        self._max_run = max_run_seconds
        self._frozen_after = frozen_after_seconds
        self._metrics = metrics

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
        found = _Found()
        if message.tasks:
            self._look_at(message, found)
        elif message.backend is not None:
            self._listen(message.backend, found)
        return Done(then=found.then, follow_up_of=found.paid)

    def _look_at(self, message: CheckTasks, found: "_Found") -> None:
        attempts = {ref.task_id: ref.attempt for ref in message.tasks}
        rows = [row for row in self._tasks.get(attempts).values() if row.attempt == attempts[row.id]]
        running: dict[str, list[Task]] = {}
        for row in rows:
            if row.status is Status.PROCESSING and row.backend is not None:
                running.setdefault(row.backend, []).append(row)
            else:
                self._guarded(row, found, lambda _, row=row: self._look(row, found))  # type: ignore[misc]  # mypy cannot type a lambda with a default
        for backend, processing in running.items():
            self._ask(backend, processing, message.via, found)

    def _listen(self, backend: str, found: "_Found") -> None:
        """Which of our jobs ended there, however many are running. Only a hint: what is missed here comes due."""
        provider = self._providers.get(backend)
        if provider is None or not self._looking.begin(backend):
            return
        rows: dict[uuid.UUID | None, Task] = {}

        def ours(job_ids: Sequence[str]) -> list[Job]:
            waiting = self._tasks.at_work(backend, job_ids)
            rows.update({row.job_key: row for row in waiting})
            return [Job.of(row) for row in waiting]

        is_over = False
        try:
            while not is_over:
                states = provider.ended(ours)
                self._decide_each([(rows.pop(key), provider, state) for key, state in states.items()], "push", found)
                is_over = self._looking.end(backend)
        except ProviderAway as error:
            log.warning("backend did not answer", extra={"backend": backend, "why": str(error)})
        finally:
            if not is_over:
                self._looking.give_up(backend)

    # --- rows whose provider need not be asked --------------------------------------------------------------------

    def _look(self, row: Task, found: _Found) -> None:
        if row.status.is_final:
            if row.due_at is not None:
                self._pay(row, found)
        elif row.is_past_deadline and row.status is Status.PENDING:
            self._fail(row, Reason.DEADLINE, "the deadline passed while the order waited", found)
        elif row.is_past_deadline and row.status is Status.SUBMITTING and row.free_at <= row.now:
            # Whether a job exists is not known; a cancel by job_key ends it if it does.
            self._fail(row, Reason.DEADLINE, "the deadline passed while submitting", found, cancel_owed=True)

    def _pay(self, row: Task, found: _Found) -> None:
        """The follow-up of a final row: cancel what may still run, the letter, the event; again until done."""
        owed = row.cancel_owed and not self._cancelled(row)
        artifacts: list[Artifact] = []
        match row.status:
            case Status.COMPLETED:
                artifacts = self._tasks.artifacts([row.id]).get(row.id, [])
                found.then.append(event(row, "completed", artifacts))
            case Status.FAILED:
                found.then += [dead_letter(row), event(row, "failed")]
            case Status.CANCELLED:
                found.then.append(event(row, "cancelled"))
            case Status.PENDING | Status.SUBMITTING | Status.PROCESSING:
                raise ValueError(f"{row.status} is not final")
            case _:
                assert_never(row.status)
        if not owed:
            found.paid.append(FollowUp(row.id, row.version))

    def _cancelled(self, row: Task) -> bool:
        provider = self._providers.get(row.backend or "")
        if provider is None:
            # A backend newer than this process; one that was started later knows it.
            log.warning("cancel still owed: backend not known here", extra={"backend": row.backend})
            return False
        try:
            return provider.cancel(Job.of(row))
        except ProviderAway as error:
            log.warning("cancel still owed", extra={"backend": row.backend, "why": str(error)})
            return False

    # --- rows at a provider ---------------------------------------------------------------------------------------

    def _ask(self, backend: str, rows: Sequence[Task], via: Literal["poll", "push"], found: _Found) -> None:
        provider = self._providers.get(backend)
        states = tried(lambda _: self._states(provider, rows), lambda _: None)
        if isinstance(states, Bug):  # one of the rows is poison: asked for alone, it fails alone
            for row in rows:
                if len(rows) == 1:
                    self._bury(row, states, found)
                else:
                    self._ask(backend, [row], via, found)
            return
        self._decide_each([(row, provider, states.get(Job.of(row).job_key)) for row in rows], via, found)

    def _decide_each(
        self,
        looked: Sequence[tuple[Task, Provider | None, JobState | None]],
        via: Literal["poll", "push"],
        found: "_Found",
    ) -> None:
        """Side by side: pictures come over the network, and moves made at the same time share a transaction."""

        def decide(row: Task, provider: Provider | None, state: JobState | None) -> None:
            self._guarded(row, found, lambda _: self._decide(row, provider, state, via, found))

        for one in [self._threads.submit(decide, *each) for each in looked]:
            one.result()

    def _states(self, provider: Provider | None, rows: Sequence[Task]) -> Mapping[uuid.UUID, JobState]:
        """What is known of each job now; nothing when the provider does not answer."""
        if provider is None:
            return {}
        try:
            return provider.check([Job.of(row) for row in rows])
        except ProviderAway as error:
            log.warning("backend did not answer", extra={"backend": rows[0].backend, "why": str(error)})
            return {}

    def _decide(
        self,
        row: Task,
        provider: Provider | None,
        state: JobState | None,
        via: Literal["poll", "push"],
        found: _Found,
    ) -> None:
        match state:
            case Succeeded() if provider is not None:
                self._keep(row, provider, state, via, found)
            case Failed():
                self._again(row, state, found)
            case Gone():
                lost = Failed(reason=Reason.LOST, why="the server has forgotten the job", retryable=True)
                self._again(row, lost, found)
            case _ if row.is_past_deadline:
                self._fail(row, Reason.DEADLINE, "the deadline passed while the job ran", found, cancel_owed=True)
            case Running() if provider is not None:
                self._limit(row, provider, found)
            case _:
                pass  # nothing was learned

    def _keep(
        self, row: Task, provider: Provider, state: Succeeded, via: Literal["poll", "push"], found: _Found
    ) -> None:
        try:
            kept = self._stored(row, provider.fetch(Job.of(row), state.outputs))
        except ProviderAway as error:
            log.warning("picture not fetched yet", extra={"backend": row.backend, "why": str(error)})
            if row.is_past_deadline:
                self._fail(row, Reason.DEADLINE, "the deadline passed while the pictures were fetched", found)
            return
        except StorageAway as error:
            log.error("picture not stored yet", extra={"why": str(error)})  # noqa: TRY400 - the cause is in the text
            if row.is_past_deadline:
                self._fail(row, Reason.STORE_FAILED, str(error), found)
            return
        except ProviderRejected as error:  # a picture too large to take
            self._fail(row, error.reason, str(error), found, charge=True)
            return
        except (BrokenPicture, FileNotFoundError) as error:
            self._again(row, Failed(reason=Reason.NO_OUTPUTS, why=str(error), retryable=True, elsewhere=True), found)
            return
        if not kept:
            self._again(row, Failed(reason=Reason.NO_OUTPUTS, why="the job made no picture", retryable=True), found)
            return
        change = Change(task=row, to=Status.COMPLETED, artifacts=kept, attempt_outcome="completed")
        completed = self._move(change)
        if completed is None:
            self._metrics.count("duplicates_suppressed_total", point="complete")
            return  # somebody was first, or our commit worked: the row says which, and it has its own due_at
        if state.finished_at is not None:
            self._metrics.observe(
                "completion_detection_seconds",
                completed.changed_at.timestamp() - state.finished_at,
                backend=row.backend or "",
                via=via,
            )
        log.info("task moved", extra={"from": row.status, "to": completed.status, "pictures": len(kept)})
        found.then.append(event(completed, "completed", kept))
        found.paid.append(FollowUp(completed.id, completed.version))

    def _stored(self, row: Task, pictures: Iterable[BinaryIO]) -> list[Artifact]:
        kept = []
        for index, picture in enumerate(pictures):
            with picture:
                kept.append(self._artifacts.put(row.id, row.attempt, index, picture))
        return kept

    def _limit(self, row: Task, provider: Provider, found: _Found) -> None:
        ran = (row.now - row.changed_at).total_seconds()
        limit = self._max_run.get(row.backend or "", float("inf"))
        if ran < limit:
            return
        try:
            gone = provider.cancel(Job.of(row))
        except ProviderAway as error:
            log.warning("job over its limit, server does not answer", extra={"why": str(error)})
            return
        if gone:
            why = f"still running after {limit:.0f} s"
            late = Failed(reason=Reason.ATTEMPTS_EXHAUSTED, why=why, retryable=True, elsewhere=True)
            self._again(row, late, found)
        elif ran > limit + self._frozen_after and self._slots.set_health(
            row.backend or "", "frozen", f"job {row.job_key} cannot be cancelled"
        ):
            # Its jobs stay where they are: another server may only have them once this one was restarted.
            log.error("backend frozen: restart it", extra={"backend": row.backend, "job_key": str(row.job_key)})

    def _again(self, row: Task, failed: Failed, found: _Found) -> None:
        """Another attempt if the job's failure and the tries allow it, else the end."""
        charged = row.charged + 1
        once_more = not failed.once or self._tasks.attempts_ended(row, Reason.EXECUTION_FAILED) == 0
        if not (failed.retryable and once_more) or row.is_past_deadline:
            self._fail(row, failed.reason, failed.why, found, charge=True)
        elif not self._retry.has_tries_left(charged):
            reason = failed.reason if failed.reason in _OWN_END else Reason.ATTEMPTS_EXHAUSTED
            self._fail(row, reason, f"{charged} attempts: {failed.why}", found, charge=True)
        else:
            change = Change(
                task=row,
                to=Status.PENDING,
                reason=failed.reason,
                detail=failed.why,
                charge=True,
                free_in=self._retry.backoff_seconds(charged),
                avoid_backend=row.backend if failed.elsewhere else None,
                attempt_outcome=failed.reason,
            )
            self._move(change)
            log.warning("attempt failed", extra={"attempt": row.attempt, "reason": failed.reason, "why": failed.why})

    def _fail(
        self, row: Task, reason: Reason, why: str, found: _Found, *, charge: bool = False, cancel_owed: bool = False
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
        failed = self._move(change)
        if failed is not None:
            log.warning("task failed", extra={"reason": reason, "why": why})
            self._pay(failed, found)

    def _guarded(self, row: Task, found: _Found, work: Callable[[int], None]) -> None:
        """A bug met with one row fails that row and not its neighbours."""
        with bound(trace_id=row.trace_id, task_id=row.id):
            outcome = tried(work, lambda _: None)
            if isinstance(outcome, Bug):
                self._bury(row, outcome, found)

    def _bury(self, row: Task, bug: Bug, found: _Found) -> None:
        now = self._tasks.refresh(row)
        if not now.status.is_final and now.attempt == row.attempt:
            owed = now.status is not Status.PENDING
            self._fail(now, Reason.BUG, bug.trace, found, cancel_owed=owed)


def _unknown(detail: str) -> DeadLetter:
    return DeadLetter(reason=Reason.INVALID_MESSAGE, detail=detail, stage=Stage.CHECK)
