"""Runs one of our services, which kills itself (-9) at the line a test names: python -m tests.e2e.dying SERVICE WHERE

The line is a call that the service makes anyway; the service itself is not changed. `die_before` and `die_after` wrap
that call. SIGKILL is sent from the very thread, so nothing below the line runs.
"""

import functools
import importlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, Final

from shared.broker.publisher import Publisher
from shared.broker.settling import Settling
from shared.database.dead_letters import DeadLetters
from shared.database.slots import Slots
from shared.database.tasks import Tasks
from shared.domain.task import Status
from shared.providers.comfyui import ComfyUI
from shared.service import run
from shared.storage import Artifacts

#: Told the call's arguments and, after it, its result: whether this call is the one to die at.
When = Callable[..., bool]


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_before(owner: type, name: str, when: When = lambda *_: True) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def dying(self: Any, *args: Any, **kwargs: Any) -> Any:
        if when(*args):
            _die()
        return original(self, *args, **kwargs)

    setattr(owner, name, dying)


def die_after(owner: type, name: str, when: When = lambda result, *_: bool(result)) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def dying(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if when(result, *args):
            _die()
        return result

    setattr(owner, name, dying)


def _in_queue(start: str) -> When:
    return lambda in_hand: in_hand.delivery.queue.startswith(start)


def _moved_to(status: Status) -> When:
    return lambda moved, *_: any(row.status is status for row in moved.values())


def _saw_running(rows: Any, *_: Any) -> bool:
    return any(row.status is Status.PROCESSING for row in rows)


#: Where -> how. The names are those of the tests in test_killed.py.
WINDOWS: Final[dict[str, Callable[[], None]]] = {
    # intake
    "claim committed": lambda: die_after(Tasks, "claim"),
    "permit confirmed": lambda: die_before(Settling, "_ack", _in_queue("orders")),
    "unstartable order failed": lambda: die_after(Tasks, "_move", _moved_to(Status.FAILED)),
    # submit
    "row taken": lambda: die_after(Slots, "take", lambda taken, *_: bool(taken.tasks)),
    "post announced": lambda: die_before(ComfyUI, "submit"),
    "post accepted": lambda: die_before(Tasks, "record"),
    "record committed": lambda: die_after(Tasks, "record"),
    "started order told": lambda: die_before(Settling, "_ack", _in_queue("submit.")),
    # check
    "picture stored": lambda: die_after(Artifacts, "put"),
    "completed committed": lambda: die_after(Tasks, "_move", _moved_to(Status.COMPLETED)),
    "event confirmed": lambda: die_before(Tasks, "clear_due"),
    "follow-up cleared": lambda: die_after(Tasks, "clear_due", lambda *_: True),
    "failed committed": lambda: die_after(Tasks, "_move", _moved_to(Status.FAILED)),
    "retry committed": lambda: die_after(Tasks, "_move", _moved_to(Status.PENDING)),
    # schedule
    "due rows taken": lambda: die_after(Tasks, "take_due", _saw_running),
    "overdue row failed": lambda: die_after(Tasks, "_move", _moved_to(Status.FAILED)),
    "permits made": lambda: die_before(Publisher, "publish", bool),
    # collector
    "letter recorded": lambda: die_after(DeadLetters, "record"),
    "letter in hand": lambda: die_before(DeadLetters, "record", bool),
}

if __name__ == "__main__":
    WINDOWS[sys.argv[2]]()
    run(importlib.import_module(f"services.{sys.argv[1]}.__main__").main)
