"""The loops of a process: they outlive outages and bugs, and a loop that meets nothing but bugs is not called alive."""

import logging
import threading
from collections.abc import Callable
from typing import Final, Protocol

from shared.domain.errors import Outage

log = logging.getLogger(__name__)

_OUTAGE_SECONDS: Final = 1.0
#: Pauses after the first bug and after many in a row.
_BUG_SECONDS: Final = (0.5, 30.0)


class Counts(Protocol):
    """What this module needs of the metrics."""

    def count(self, name: str, amount: float = 1, /, **labels: str) -> None: ...


def keep_turning(
    loop: str, turn: Callable[[], float], *, stopping: threading.Event, beat: Callable[[], object], metrics: Counts
) -> None:
    """Call `turn` until told to stop; it answers the seconds to wait until the next one.

    An outage only means that a turn did nothing. A bug is logged and counted, the pauses after it grow, and it brings
    no beat: a loop that makes no progress is past its limit soon, and then the watchdog ends the process.

    loop -- one of catalog.LOOPS
    """
    beat()
    pause = _BUG_SECONDS[0]
    while not stopping.is_set():
        try:
            wait = turn()
        except Outage as error:
            log.warning("loop waits", extra={"loop": loop, "why": str(error)})
            wait = _OUTAGE_SECONDS
        except Exception:
            log.exception("a bug in a loop", extra={"loop": loop})
            metrics.count("loop_bugs_total", loop=loop)
            stopping.wait(pause)
            pause = min(_BUG_SECONDS[1], 2 * pause)
            continue
        pause = _BUG_SECONDS[0]
        beat()
        stopping.wait(wait)
