"""Keeps darkroom_invariant_violations true: the audit's cheap questions, asked every few seconds."""

import logging
import threading
from collections.abc import Callable
from typing import Final

import sqlalchemy as sa

from shared.database.audit import count_violations
from shared.domain.errors import Outage
from shared.observe.metrics import Metrics

log = logging.getLogger(__name__)

INTERVAL_SECONDS: Final = 10.0
#: Questions that would read the whole table are about tasks that moved in this time; `darkroom audit` asks about all.
#: Long enough that a violation is seen by many scrapes before it leaves the window.
WINDOW_SECONDS: Final = 1800.0


class Exporter:
    """One loop. While the database cannot be asked the gauge has no series at all: an old 0 would be a lie."""

    def __init__(self, engine: sa.Engine, metrics: Metrics) -> None:
        self._engine = engine
        self._metrics = metrics

    def run(self, stopping: threading.Event, beat: Callable[[], None]) -> None:
        """Turn until told to stop."""
        while not stopping.is_set():
            beat()
            self.turn()
            stopping.wait(INTERVAL_SECONDS)

    def turn(self) -> None:
        """Ask once. A question the database refuses is logged and shows as a missing series."""
        try:
            counts = count_violations(self._engine, WINDOW_SECONDS)
        except (Outage, sa.exc.SQLAlchemyError) as error:
            self._metrics.forget("invariant_violations")
            log.warning("invariants not asked", extra={"why": str(error)})
            return
        for check, rows in counts.items():
            self._metrics.set("invariant_violations", rows, check=check)
            if rows:
                log.error("promise broken: run `darkroom audit`", extra={"check": check, "rows": rows})
