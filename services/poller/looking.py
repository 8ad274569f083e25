"""Hints come in bursts: one look per backend at a time, some time apart, and none of them is lost."""

import threading
import time
from collections.abc import Callable
from typing import Final

#: Between two looks at one backend: what ends meanwhile is found together. A look costs a message, a read of the
#: history and a query, as much as eight orders in it.
APART_SECONDS: Final = 0.1


class Looking:
    """Who looks at a backend now. Whoever comes meanwhile leaves it to them to see that it is looked at once more."""

    def __init__(
        self, pause: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pause = pause
        self._clock = clock
        self._lock = threading.Lock()
        self._asked_again: dict[str, bool] = {}
        self._looked_at: dict[str, float] = {}

    def begin(self, backend: str) -> bool:
        """False: somebody is looking, and will have it looked at again. Else the caller's turn, once it has come."""
        with self._lock:
            is_free = backend not in self._asked_again
            self._asked_again[backend] = not is_free
            due = self._looked_at.get(backend, float("-inf")) + APART_SECONDS
        if is_free:
            if (early := due - self._clock()) > 0:
                self._pause(early)
            with self._lock:  # what was asked until here is answered by the look that begins now
                self._asked_again[backend] = False
                self._looked_at[backend] = self._clock()
        return is_free

    def end(self, backend: str) -> bool:
        """Whether somebody came meanwhile."""
        with self._lock:
            return self._asked_again.pop(backend)
