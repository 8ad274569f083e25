"""Questions that are out. A server that keeps one waiting gets no other: it may hold one thread, not all of them."""

import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Final

#: How long an answer may take before its server counts as silent. A look that settles whether a job is gone takes 2 s.
_PATIENCE_SECONDS: Final = 5.0


class Questions:
    """By backend, since when each question is out, and whether the last one got an answer. For all threads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._out: defaultdict[str, list[float]] = defaultdict(list)
        self._silent: set[str] = set()

    def begin(self, backend: str) -> float | None:
        """What `end` needs to be told; None: it is silent and keeps somebody waiting already, so ask later."""
        with self._lock:
            out, now = self._out[backend], self._clock()
            if out and (backend in self._silent or now - out[0] > _PATIENCE_SECONDS):
                return None
            out.append(now)
            return now

    def end(self, backend: str, began: float, *, is_silent: bool) -> None:
        """is_silent -- the question was given up"""
        with self._lock:
            self._out[backend].remove(began)
            (self._silent.add if is_silent else self._silent.discard)(backend)
