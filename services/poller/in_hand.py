"""Rows that a thread of this process decides about: a hint and a due row's own check often mean the same one."""

import threading
import uuid
from collections import OrderedDict
from typing import Final

from shared.domain.task import Task

#: Moves remembered. Forgetting one can cost a picture fetched twice.
_REMEMBERED: Final = 10_000


class InHand:
    """For all threads. Two processes may still look at one row; then the one that moves it first has it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ids: set[uuid.UUID] = set()
        self._moved: OrderedDict[uuid.UUID, int] = OrderedDict()

    def is_free(self, row: Task) -> bool:
        """Whether nobody has the row in hand, and it has not moved here since it was read."""
        with self._lock:
            return self._is_free(row)

    def take(self, row: Task) -> bool:
        """True: it was free, and is the caller's until `give_back`."""
        with self._lock:
            if is_free := self._is_free(row):
                self._ids.add(row.id)
            return is_free

    def give_back(self, row: Task) -> None:
        with self._lock:
            self._ids.discard(row.id)

    def has_moved(self, row: Task) -> None:
        """row -- as it is after its move"""
        with self._lock:
            self._moved[row.id] = row.version
            self._moved.move_to_end(row.id)
            if len(self._moved) > _REMEMBERED:
                self._moved.popitem(last=False)

    def _is_free(self, row: Task) -> bool:
        return row.id not in self._ids and row.version >= self._moved.get(row.id, 0)
