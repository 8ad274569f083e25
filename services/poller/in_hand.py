"""Rows that a thread of this process looks at: a hint and a due row's own check often mean the same one."""

import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from shared.domain.task import Task


class InHand:
    """For all threads. Two processes may still look at one row; then the one that moves it first has it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids: set[uuid.UUID] = set()

    @contextmanager
    def taken(self, rows: Sequence[Task]) -> Iterator[Sequence[Task]]:
        """Those of the rows that nobody has in hand; the caller has them inside."""
        with self._lock:
            free = [row for row in rows if row.id not in self._ids]
            self._ids.update(row.id for row in free)
        try:
            yield free
        finally:
            with self._lock:
                self._ids.difference_update(row.id for row in free)
