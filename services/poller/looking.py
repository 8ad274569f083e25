"""Hints come in bursts: one look per backend at a time, and none of them is lost."""

import threading


class Looking:
    """Who looks at a backend now. Whoever comes meanwhile leaves it to them to see that it is looked at once more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked_again: dict[str, bool] = {}

    def begin(self, backend: str) -> bool:
        """False: somebody is looking, and will have it looked at again."""
        with self._lock:
            is_free = backend not in self._asked_again
            self._asked_again[backend] = not is_free
            return is_free

    def end(self, backend: str) -> bool:
        """Whether somebody came meanwhile."""
        with self._lock:
            return self._asked_again.pop(backend)
