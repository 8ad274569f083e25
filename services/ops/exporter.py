"""Exports what is: the rows as gauges, and the audit's cheap questions as darkroom_invariant_violations.

Workers count what they do; no worker asks the table for a metric. Every replica of this service exports the same
numbers, so whoever reads them takes `max by`, never `sum`.
"""

import logging
import re
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from shared.database.audit import Check, recent_violations
from shared.database.slots import Backend
from shared.database.state import State, Waiting, read_state
from shared.domain.errors import Outage
from shared.domain.task import Reason, Stage, Status, task_id_for
from shared.loop import keep_turning
from shared.observe.catalog import BACKEND_STATES, OTHER, REPLAYS
from shared.observe.metrics import Metrics

log = logging.getLogger(__name__)

INTERVAL_SECONDS: Final = 10.0
#: The invariants are asked for less often the longer they take, so they cost at most a fortieth of the database's time.
#: With 1.3 million tasks, 300 000 of them waiting, and 230 000 moves in the window they took 16 s on a busy machine.
_PAUSES_PER_ANSWER: Final = 39.0
#: Questions that would read the whole table are about tasks that moved since they were asked before, at first in this
#: time; `darkroom audit` asks about all.
WINDOW_SECONDS: Final = 1800.0
#: They look back so much further: a move may commit late, and a missing letter is none before its minute is over.
_MARGIN_SECONDS: Final = 180.0
_IS_TASK: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)

_STATE_GAUGES: Final = (
    "tasks",
    "task_oldest_age_seconds",
    "tasks_overdue",
    "backend_inflight_tasks",
    "backend_capacity_tasks",
    "backend_limit_tasks",
    "backend_up",
    "backend_account_refused",
    "results_at_risk",
    "pool_backends",
    "database_connections",
    "dead_letters_open",
    "dead_letter_replays",
)


@dataclass(frozen=True, slots=True)
class Seen:
    """The last answers, and how long ago each was given; None: the database could not be asked."""

    state: State | None = None
    state_age_seconds: float = 0.0
    violations: Mapping[Check, int] | None = None
    violations_age_seconds: float = 0.0


class Exporter:
    """One loop. While the database cannot be asked its gauges have no series at all: an old number would be a lie.

    pools, backends -- of the configuration; rows of any other are shown as "other"
    """

    def __init__(
        self,
        engine: sa.Engine,
        metrics: Metrics,
        *,
        pools: Sequence[str],
        backends: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._metrics = metrics
        self._pools = pools
        self._backends = backends
        self._clock = clock
        self._invariants_at = 0.0
        self._looked_at: float | None = None
        self._broken: set[uuid.UUID] = set()
        self._last_state: tuple[State, float] | None = None
        self._last_violations: tuple[Mapping[Check, int], float] | None = None

    @property
    def seen(self) -> Seen:
        """What the gauges say, for who asks this process for a page."""
        state, violations, now = self._last_state, self._last_violations, self._clock()
        return Seen(
            state[0] if state else None,
            now - state[1] if state else 0.0,
            violations[0] if violations else None,
            now - violations[1] if violations else 0.0,
        )

    def run(self, stopping: threading.Event, beat: Callable[[], None]) -> None:
        """Turn until told to stop."""

        def turn() -> float:
            self.turn()
            return INTERVAL_SECONDS

        keep_turning("export", turn, stopping=stopping, beat=beat, metrics=self._metrics)

    def turn(self) -> None:
        """Ask what is due. A question that the database refuses is logged and shows as missing series."""
        self._ask("state", self._state, _STATE_GAUGES)
        begun = self._clock()
        if begun >= self._invariants_at:
            self._ask("invariants", self._invariants, ("invariant_violations",))
            ended = self._clock()
            self._invariants_at = ended + _PAUSES_PER_ANSWER * (ended - begun)

    def _ask(self, question: str, export: Callable[[], None], gauges: Sequence[str]) -> None:
        begun = time.monotonic()
        try:
            export()
        except (Outage, sa.exc.SQLAlchemyError) as error:
            for gauge in gauges:
                self._metrics.forget(gauge)
            self._forget(question)
            log.warning("question not answered", extra={"question": question, "why": str(error)})
            return
        self._metrics.set("state_query_seconds", time.monotonic() - begun, question=question)
        self._metrics.set("state_last_success_timestamp_seconds", time.time(), question=question)

    def _forget(self, question: str) -> None:
        if question == "state":
            self._last_state = None
        else:
            self._last_violations = None

    def _state(self) -> None:
        state = read_state(self._engine)
        self._last_state = state, self._clock()
        self._waiting(state.waiting)
        self._load(state.backends, state.at_risk)
        for bound, count in state.overdue.items():
            self._metrics.set("tasks_overdue", count, bound=bound)
        self._metrics.set("database_connections", state.connections, kind="open")
        self._metrics.set("database_connections", state.connections_limit, kind="limit")
        for result in REPLAYS:
            self._metrics.set("dead_letter_replays", state.replays.get(result, 0), result=result)
        for stage in Stage:
            for reason in Reason:
                count = state.dead_letters.get((stage, reason), 0)
                self._metrics.set("dead_letters_open", count, stage=stage, reason=reason)

    def _waiting(self, waiting: Sequence[Waiting]) -> None:
        counts: Counter[tuple[str, Status]] = Counter()
        oldest: dict[tuple[str, Status], float] = {}
        for row in waiting:
            key = (row.pool if row.pool in self._pools else OTHER, row.status)
            counts[key] += row.count
            oldest[key] = max(row.oldest_seconds, oldest.get(key, 0.0))
        for pool in (*self._pools, OTHER):
            for status in (status for status in Status if not status.is_final):
                self._metrics.set("tasks", counts[pool, status], pool=pool, status=status)
                age = oldest.get((pool, status), 0.0)
                self._metrics.set("task_oldest_age_seconds", age, pool=pool, status=status)

    def _load(self, backends: Sequence[Backend], at_risk: Mapping[str, int]) -> None:
        states = Counter((backend.pool, backend.state) for backend in backends)
        for pool in self._pools:
            for state in BACKEND_STATES:
                self._metrics.set("pool_backends", states[pool, state], pool=pool, state=state)
        elsewhere = 0
        for backend in backends:
            if backend.name not in self._backends:
                elsewhere += backend.in_flight
                continue
            self._metrics.set("backend_inflight_tasks", backend.in_flight, backend=backend.name)
            self._metrics.set("backend_capacity_tasks", backend.capacity, backend=backend.name)
            self._metrics.set("backend_limit_tasks", backend.limit, backend=backend.name)
            self._metrics.set("backend_up", backend.health == "up", backend=backend.name)
            self._metrics.set("backend_account_refused", backend.health == "refused", backend=backend.name)
            self._metrics.set("results_at_risk", at_risk.get(backend.name, 0), backend=backend.name)
        self._metrics.set("backend_inflight_tasks", elsewhere, backend=OTHER)

    def _invariants(self) -> None:
        """What is broken stays in view until it is mended; of the rest, only what has moved can have broken."""
        begun = self._clock()
        since = WINDOW_SECONDS if self._looked_at is None else begun - self._looked_at + _MARGIN_SECONDS
        violations = recent_violations(self._engine, since, self._broken)
        self._looked_at = begun
        self._broken = {task for check, subjects in violations.items() for task in _tasks_of(check, subjects)}
        counts = {check: len(subjects) for check, subjects in violations.items()}
        self._last_violations = counts, self._clock()
        for check, rows in counts.items():
            self._metrics.set("invariant_violations", rows, check=check)
            if rows:
                log.error("promise broken: run `darkroom audit`", extra={"check": check, "rows": rows})


def _tasks_of(check: Check, subjects: Sequence[str]) -> Iterator[uuid.UUID]:
    """The tasks among the subjects; backends and orders are looked at anyway."""
    for subject in subjects:
        if check is Check.DUPLICATE_TASK:
            yield task_id_for(subject)
        elif _IS_TASK.fullmatch(subject):
            yield uuid.UUID(subject)
