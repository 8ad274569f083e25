"""Hints come in bursts: one look per backend at a time, and none of them is lost."""

import threading


class Looking:
    """One look per backend at a time; whoever comes meanwhile makes the one under way look once more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._again: dict[str, bool] = {}

    def begin(self, backend: str) -> bool:
        """False: somebody is looking, and will look again."""
        with self._lock:
            is_free = backend not in self._again
            self._again[backend] = not is_free
            return is_free

    def end(self, backend: str) -> bool:
        """False: look once more."""
        with self._lock:
            if self._again[backend]:
                self._again[backend] = False
                return False
            del self._again[backend]
            return True

    def give_up(self, backend: str) -> None:
        with self._lock:
            del self._again[backend]
