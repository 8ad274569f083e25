"""Since when a job has been seen running. A job that waits in its server's queue has not begun."""

import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

#: Jobs remembered. Forgetting one gives it a whole limit more.
_REMEMBERED: Final = 10_000


class Runs:
    """What this process has seen; nothing is written for it, see docs/decisions/0010. For all threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: OrderedDict[uuid.UUID, float] = OrderedDict()
        self._lock = threading.Lock()

    def seconds(self, job_key: uuid.UUID) -> float:
        """How long the job, which runs now, has been seen running; 0 the first time."""
        now = self._clock()
        with self._lock:
            since = self._since.setdefault(job_key, now)
            if len(self._since) > _REMEMBERED:
                self._since.popitem(last=False)
        return now - since

    def forget(self, job_key: uuid.UUID) -> None:
        """The job does not run any more."""
        with self._lock:
            self._since.pop(job_key, None)
