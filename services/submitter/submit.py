"""Permits become provider jobs: take as many rows as there are permits and free slots, and have them started."""

import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from threading import Event

from services.submitter.ends import Ends
from services.submitter.insist import Insist
from services.submitter.keep import Keep
from services.submitter.start import Start
from services.submitter.together import Together
from shared.database.slots import Slots
from shared.database.tasks import Tasks
from shared.domain.messages import TASK_SUBMIT, Delivery
from shared.domain.outcome import DeadLetter, Done, Hold, Outcome, Verdict
from shared.domain.retry import RetryPolicy
from shared.domain.task import Reason, Stage, Task
from shared.observe.logs import ContextPool
from shared.observe.metrics import Metrics
from shared.providers.base import Job, Provider, SubmitsTogether
from shared.storage import Artifacts


class Submit:
    """Handler of submit.<pool>: one taker per process asks for all permits in hand at once.

    first_look_seconds -- when the poller looks at a new job for the first time
    artifacts          -- keeps what a synchronous provider answers with
    stopping           -- set on SIGTERM: no further waiting for a database that is away
    """

    def __init__(
        self,
        pool: str,
        tasks: Tasks,
        slots: Slots,
        providers: Mapping[str, Provider],
        *,
        calls: ContextPool,
        lease_seconds: float,
        first_look_seconds: float,
        retry: RetryPolicy,
        metrics: Metrics,
        stopping: Event,
        artifacts: Artifacts,
    ) -> None:
        self._pool = pool
        self._slots = slots
        self._providers = providers
        self._calls = calls
        self._lease = lease_seconds
        self._together_at = {name: p for name, p in providers.items() if isinstance(p, SubmitsTogether)}
        insist = Insist(stopping)
        ends = Ends(tasks, insist, retry)
        self._start = Start(
            pool,
            tasks,
            slots,
            providers,
            ends=ends,
            keep=Keep(tasks, artifacts, ends, insist, lease_seconds),
            insist=insist,
            lease_seconds=lease_seconds,
            first_look_seconds=first_look_seconds,
            metrics=metrics,
        )
        self._together = Together(
            tasks, self._start, insist, calls, lease_seconds=lease_seconds, first_look=first_look_seconds
        )

    def handle(self, permits: Sequence[Delivery]) -> Sequence[Outcome | Future[Verdict]]:
        """Start as many rows as there are permits and free slots. A redelivered permit walks the same path."""
        good = [permit for permit in permits if permit.type == TASK_SUBMIT]
        taken = self._slots.take(self._pool, at_most=len(good), lease_seconds=self._lease, known=self._providers)
        started = self._begin(taken.tasks)
        rest: Outcome = Done() if taken.none_left else Hold()
        answers = iter([*started, *(rest for _ in range(len(good) - len(started)))])
        return [next(answers) if permit.type == TASK_SUBMIT else _unknown(permit) for permit in permits]

    def _begin(self, tasks: Sequence[Task]) -> list[Future[Verdict]]:
        plain: dict[str, list[Task]] = {}
        for task in tasks:
            provider = self._together_at.get(task.backend or "")
            if provider is not None and not task.taken_over and not task.is_probe and provider.is_plain(Job.of(task)):
                plain.setdefault(task.backend or "", []).append(task)
        begun: list[Future[Verdict]] = []
        together: set[uuid.UUID] = set()
        for backend, rows in plain.items():
            if len(rows) > 1:
                begun += self._together.begin(self._together_at[backend], rows)
                together.update(row.id for row in rows)
        return begun + [self._calls.submit(self._start, task) for task in tasks if task.id not in together]


def _unknown(delivery: Delivery) -> DeadLetter:
    return DeadLetter(
        reason=Reason.INVALID_MESSAGE, detail=f"type {delivery.type!r} is not {TASK_SUBMIT}", stage=Stage.SUBMIT
    )
