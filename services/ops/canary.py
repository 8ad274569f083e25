"""Sends an order every minute through everything there is, and says when one came through the last time.

Of several replicas the one that holds the lock sends. The next order waits for the one before, so an outage leaves one
of them behind and not one for each of its minutes.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from shared.database.canaries import forget_canaries
from shared.database.purge import pictures_gone
from shared.database.tasks import Tasks
from shared.domain.canary_order import canary_order
from shared.domain.errors import StorageAway
from shared.domain.messages import Message, Order, order_placed
from shared.domain.task import Status
from shared.observe.logs import bound
from shared.observe.metrics import Metrics
from shared.observe.trace import new_trace_id, traceparent_of
from shared.storage import Artifacts

log = logging.getLogger(__name__)

_EVERY_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.25
_NO_LEADER_SECONDS: Final = 5.0
#: One that has not come through by then may be lost, which is what it is for to show; another one is sent.
_LOST_AFTER_SECONDS: Final = 600.0
#: Rows that came through stay for so long, for a person who looks.
_KEEP_SECONDS: Final = 600.0


@dataclass(frozen=True, slots=True)
class _UnderWay:
    order: Order
    trace_id: str
    since: float


class CanaryOrders:
    """`turn` is one step of a loop; it answers the seconds until the next one.

    publish -- returns when all are confirmed; raises Outage
    leads   -- whether this replica is the one that sends
    """

    def __init__(
        self,
        engine: sa.Engine,
        tasks: Tasks,
        artifacts: Artifacts,
        *,
        publish: Callable[[Sequence[Message]], None],
        leads: Callable[[], bool],
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._tasks = tasks
        self._artifacts = artifacts
        self._publish = publish
        self._leads = leads
        self._metrics = metrics
        self._clock = clock
        self._under_way: _UnderWay | None = None
        self._is_sending = False

    def turn(self) -> float:
        """Send one, or see what has become of it. Raises Outage: the next turn goes on from there."""
        if not self._leads():
            self._leave_it_to_others()
            return _NO_LEADER_SECONDS
        if not self._is_sending:
            self._is_sending = True
            self._came_through_at(time.time())  # until one has, the time runs from here
        if self._under_way is None:
            self._under_way = self._send()
            return _LOOK_SECONDS
        now = self._under_way
        with bound(trace_id=now.trace_id, task_id=now.order.task_id):
            seconds = self._clock() - now.since
            if not self._has_ended(now, seconds):
                return _LOOK_SECONDS if seconds < _EVERY_SECONDS else 1.0
        self._under_way = None
        self._tidy_up()
        return max(0.0, _EVERY_SECONDS - seconds)

    def _send(self) -> _UnderWay:
        sent = _UnderWay(canary_order(), new_trace_id(), self._clock())
        self._publish([order_placed(sent.order, traceparent=traceparent_of(sent.trace_id))])
        return sent

    def _has_ended(self, sent: _UnderWay, seconds: float) -> bool:
        row = self._tasks.find(sent.order.task_id)
        if row is None or not row.status.is_final or row.told_at is None:
            if seconds < _LOST_AFTER_SECONDS:
                return False
            log.error("canary order lost", extra={"status": None if row is None else row.status})
        elif row.status is Status.COMPLETED:
            self._came_through_at(time.time())
            self._metrics.set("probe_duration_seconds", seconds, probe="canary")
        else:
            log.error("canary order ended badly", extra={"status": row.status, "reason": row.reason})
        return True

    def _tidy_up(self) -> None:
        gone = forget_canaries(self._engine, _KEEP_SECONDS)
        try:
            self._artifacts.remove(gone)
        except StorageAway as error:  # they are noted, and the next purge deletes them
            log.warning("pictures of canary orders not deleted", extra={"why": str(error)})
        else:
            pictures_gone(self._engine, gone)

    def _came_through_at(self, moment: float) -> None:
        self._metrics.set("probe_last_success_timestamp_seconds", moment, probe="canary")

    def _leave_it_to_others(self) -> None:
        self._is_sending = False
        self._under_way = None
        for gauge in ("probe_last_success_timestamp_seconds", "probe_duration_seconds"):
            self._metrics.forget(gauge)
