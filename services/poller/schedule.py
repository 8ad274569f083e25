"""The table owns time: finds rows whose moment has come, sends them to be checked, makes missing permits again."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from itertools import groupby
from threading import Event
from typing import Final

from shared.broker.publisher import Publisher
from shared.broker.topology import check_queue, submit_queue
from shared.database.moves import Change
from shared.database.slots import Slots
from shared.database.tasks import Tasks
from shared.domain.errors import BrokerAway
from shared.domain.messages import CheckTasks, Message, TaskRef, check, dead_letter, event, permit
from shared.domain.outcome import FollowUp
from shared.domain.task import Reason, Stage, Status, Task
from shared.loop import keep_turning
from shared.observe.logs import bound
from shared.observe.metrics import Metrics

log = logging.getLogger(__name__)

#: Rows taken in one turn; more are there in the next one.
_BATCH: Final = 1000
#: Rows one check message names: one bulk status call.
_PER_MESSAGE: Final = 100
#: A check queue with more messages than this is not draining and gets no further ones.
_DRAINING_BELOW: Final = 50
#: Permits made in one turn and pool, and so many that are ready are enough.
_PERMITS: Final = 500
_CONFIRM_SECONDS: Final = 15.0


class Schedule:
    """One loop; several processes may run it, they skip each other's rows.

    pools           -- pools of the backends file, each with its queues; a row of any other goes to the first one's
    check_interval  -- seconds until a running job is looked at again
    permit_interval -- seconds between two looks for missing permits
    fall_back       -- moves orders on that wait for a pool that takes no work: the rows, and where each is now
    stranded        -- rows whose one backend is gone, each with a sentence about it
    """

    def __init__(
        self,
        tasks: Tasks,
        slots: Slots,
        publisher: Publisher,
        pools: Sequence[str],
        *,
        interval: float,
        check_interval: float,
        permit_interval: float,
        metrics: Metrics,
        fall_back: Callable[[], Sequence[tuple[Task, str]]] = tuple,
        stranded: Callable[[], Sequence[tuple[Task, str]]] = tuple,
    ) -> None:
        self._tasks = tasks
        self._slots = slots
        self._publisher = publisher
        self._pools = list(pools)
        self._interval = interval
        self._check_interval = check_interval
        self._permit_interval = permit_interval
        self._metrics = metrics
        self._fall_back = fall_back
        self._stranded = stranded
        self._permits_at = 0.0

    def run(self, stopping: Event, beat: Callable[[], None]) -> None:
        """Turn until told to stop."""
        keep_turning("schedule", self._next, stopping=stopping, beat=beat, metrics=self._metrics)

    def _next(self) -> float:
        full = self.turn()
        if time.monotonic() >= self._permits_at:
            self.make_permits()
            self._permits_at = time.monotonic() + self._permit_interval
        return 0.0 if full else self._interval

    def turn(self) -> bool:
        """Send every due row on its way; True when there may be more of them. Raises Outage: they come due again."""
        stuck = [pool for pool in self._pools if not self._is_draining(pool)]
        rows = self._tasks.take_due(_BATCH, self._check_interval, stuck)
        overdue = [r for r in rows if r.status is Status.PENDING and r.is_past_deadline]
        self._end([(r, Reason.DEADLINE, "the deadline passed while the order waited") for r in overdue])
        # A submitting row within its deadline needs no look: a permit brings the takeover.
        look = [r for r in rows if r.status.is_final or r.status is Status.PROCESSING]
        look += [r for r in rows if r.status is Status.SUBMITTING and r.is_past_deadline]
        # A row of a pool nobody serves goes to the first pool's queue, which `take_due` could not know.
        look = [r for r in look if self._pool_of(r) not in stuck]
        self._publish(self._checks(look))
        return len(rows) == _BATCH

    def look_now(self, pool: str, backend: str) -> None:
        """Have somebody look now which jobs ended there: its queue got shorter. Raises Outage.

        A check queue that does not drain gets no hint either: the rows come due anyway.
        """
        if self._is_draining(pool):
            self._publish([check(pool, CheckTasks(pool=pool, backend=backend, via="push"))])

    def make_permits(self) -> None:
        """Per pool that runs, as many permits as rows are free to take beyond the messages ready in its queue.

        A queue that holds enough of them is left alone: counting all that wait, of a million, would take a second.
        """
        for row, pool in self._fall_back():
            self._metrics.count("fallbacks_total", pool=row.pool)
            with bound(trace_id=row.trace_id, task_id=row.id):
                log.info("order goes on elsewhere", extra={"from": row.pool, "to": pool})
        self._end([(row, Reason.REJECTED, why) for row, why in self._stranded()])
        running = {b.pool for b in self._slots.backends() if b.wants_permits} & set(self._pools)
        ready = {pool: self._depth(submit_queue(pool)) for pool in sorted(running)}
        short = {pool: depth for pool, depth in ready.items() if depth < _PERMITS}
        rows = self._tasks.free_rows({pool: depth + _PERMITS for pool, depth in short.items()})
        self._publish([permit(pool) for pool, depth in short.items() for _ in range(rows[pool] - depth)])

    def _end(self, ends: Sequence[tuple[Task, Reason, str]]) -> None:
        """pending -> failed here and not in a handler: a paused pool has no consumer."""
        changes = [
            Change(task=row, to=Status.FAILED, reason=reason, detail=why, stage=Stage.SUBMIT)
            for row, reason, why in ends
        ]
        failed = list(self._tasks.move(changes).values())
        for row in failed:
            with bound(trace_id=row.trace_id, task_id=row.id):
                log.warning("task failed", extra={"reason": row.reason, "why": row.detail})
        self._publish([message for row in failed for message in (dead_letter(row), event(row, "failed"))])
        if failed:
            self._tasks.clear_due([FollowUp(row.id, row.version) for row in failed])

    def _checks(self, rows: Sequence[Task]) -> list[Message]:
        def place(row: Task) -> tuple[str, str]:
            return (self._pool_of(row), row.backend or "")

        messages = []
        for (pool, backend), group in groupby(sorted(rows, key=place), key=place):
            rows_here = list(group)
            for start in range(0, len(rows_here), _PER_MESSAGE):
                part = rows_here[start : start + _PER_MESSAGE]
                refs = [TaskRef(task_id=row.id, attempt=row.attempt) for row in part]
                messages.append(check(pool, CheckTasks(pool=pool, backend=backend or None, tasks=refs)))
        return messages

    def _pool_of(self, row: Task) -> str:
        return row.pool if row.pool in self._pools else self._pools[0]

    def _publish(self, messages: Sequence[Message]) -> None:
        sent = self._publisher.publish(messages)
        try:
            sent.result(_CONFIRM_SECONDS)
        except FutureTimeoutError:
            sent.cancel()
            raise BrokerAway(f"{len(messages)} messages not confirmed in {_CONFIRM_SECONDS:.0f} s") from None

    def _is_draining(self, pool: str) -> bool:
        return self._depth(check_queue(pool)) <= _DRAINING_BELOW

    def _depth(self, queue: str) -> int:
        try:
            return self._publisher.depth(queue).result(_CONFIRM_SECONDS)
        except FutureTimeoutError:
            raise BrokerAway(f"the depth of {queue} was not answered") from None
