"""Where a process can be made to die: between any two effects of a step, by SIGKILL, to prove that nothing is lost.

DARKROOM_KILL_AT=<name>[:nth] arms one point. The calls stand in the consumer, the publisher, the repository and the
edges of the adapters; handlers contain none. `darkroom drill` dies at each of them.
"""

import difflib
import json
import logging
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar, overload

log = logging.getLogger(__name__)

What = TypeVar("What")

#: The event of the last line on standard error of a process that dies at a point.
KILLED: Final = "killed at a crash point"


class CrashPoint(StrEnum):
    """Every boundary between two effects. Past tense: that effect is done; `-ing`: it is the very next thing."""

    # The consumer, by the step whose queue it is.
    INTAKE_DELIVERED = "intake_delivered"
    INTAKE_DECIDED = "intake_decided"
    INTAKE_ACKING = "intake_acking"
    INTAKE_ACKED = "intake_acked"
    SUBMIT_DELIVERED = "submit_delivered"
    SUBMIT_DECIDED = "submit_decided"
    SUBMIT_ACKING = "submit_acking"
    SUBMIT_ACKED = "submit_acked"
    CHECK_DELIVERED = "check_delivered"
    CHECK_DECIDED = "check_decided"
    CHECK_ACKING = "check_acking"
    CHECK_ACKED = "check_acked"
    COLLECT_DELIVERED = "collect_delivered"
    COLLECT_DECIDED = "collect_decided"
    COLLECT_ACKING = "collect_acking"
    COLLECT_ACKED = "collect_acked"

    # The publisher, by what the message is. Sent, like acked: it may or may not have reached the broker.
    ORDER_SENT = "order_sent"
    ORDER_CONFIRMED = "order_confirmed"
    PERMIT_SENT = "permit_sent"
    PERMIT_CONFIRMED = "permit_confirmed"
    CHECK_SENT = "check_sent"
    CHECK_CONFIRMED = "check_confirmed"
    EVENT_SENT = "event_sent"
    EVENT_CONFIRMED = "event_confirmed"
    LETTER_SENT = "letter_sent"
    LETTER_CONFIRMED = "letter_confirmed"

    # The repository: each stands behind a commit, those that end in -ING before one.
    CLAIM_COMMITTED = "claim_committed"
    ROW_TAKEN = "row_taken"
    POST_ALLOWED = "post_allowed"
    RECORD_COMMITTED = "record_committed"
    UNSTARTED_FAILED = "unstarted_failed"
    SUBMISSION_FAILED = "submission_failed"
    ROW_GIVEN_BACK = "row_given_back"
    COMPLETED_COMMITTED = "completed_committed"
    RETRY_COMMITTED = "retry_committed"
    JOB_FAILED = "job_failed"
    DUE_TAKEN = "due_taken"
    FOLLOW_UP_CLEARING = "follow_up_clearing"
    FOLLOW_UP_CLEARED = "follow_up_cleared"
    LETTER_RECORDED = "letter_recorded"
    REPLAY_COMMITTED = "replay_committed"
    REPLAY_NOTED = "replay_noted"
    PLAN_STEPPING = "plan_stepping"
    PLAN_STEPPED = "plan_stepped"

    # The edges of the adapters: provider and artifact store.
    INPUT_UPLOADED = "input_uploaded"
    POSTING = "posting"
    POSTED = "posted"
    JOB_LOOKED_UP = "job_looked_up"
    STATES_READ = "states_read"
    ENDED_READ = "ended_read"
    JOB_CANCELLED = "job_cancelled"
    PICTURE_FETCHED = "picture_fetched"
    PICTURE_WRITTEN = "picture_written"
    PICTURE_STORED = "picture_stored"


@dataclass(frozen=True, slots=True)
class KillAt:
    """Which point, and at which of the times the process comes by it, counted from 1."""

    point: CrashPoint
    nth: int = 1


def read_kill_at(text: str) -> KillAt:
    """`name` or `name:nth`. Raises ValueError that names the nearest point. Pure."""
    name, colon, count = text.partition(":")
    try:
        point = CrashPoint(name)
    except ValueError:
        nearest = difflib.get_close_matches(name, list(CrashPoint), n=1, cutoff=0.0)
        raise ValueError(f"names no crash point; the nearest is {nearest[0]}") from None
    if colon and not (count.isascii() and count.isdigit() and int(count) > 0):
        raise ValueError(f"must end with a number from 1 behind its colon, as in {name}:2")
    return KillAt(point, int(count or 1))


_armed: CrashPoint | None = None
_left = 0
_lock = threading.Lock()


def arm(kill_at: KillAt | None) -> None:
    """From here on this process dies there; None: nowhere. Called once, where the settings are read."""
    global _armed, _left
    _armed = kill_at.point if kill_at else None
    _left = kill_at.nth if kill_at else 0
    if kill_at:
        log.warning("armed to die", extra={"point": kill_at.point, "nth": kill_at.nth})


@overload
def crash_point(at: CrashPoint) -> None: ...


@overload
def crash_point(at: Callable[[What], CrashPoint | None], what: What) -> None: ...


def crash_point(at: CrashPoint | Callable[[What], CrashPoint | None], what: What | None = None) -> None:
    """Dies here if this is the armed point; one comparison with None in a process that is not armed.

    at -- the point, or which one `what` makes it; that is asked only in an armed process
    """
    if _armed is None:
        return
    point = at if isinstance(at, CrashPoint) else at(what)  # type: ignore[arg-type]  # the overloads give it one
    if point is _armed:
        _die_in_turn()


def _die_in_turn() -> None:
    global _left
    with _lock:
        _left -= 1
        if _left == 0:
            # Past the log, whose handler another thread may hold, and which a command does not have.
            os.write(2, f"{json.dumps({'level': 'warning', 'event': KILLED, 'point': _armed})}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)
