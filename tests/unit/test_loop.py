"""A loop goes on after outages and bugs, and one that meets only bugs is not called alive."""

import threading
from collections.abc import Callable

import pytest

from shared.domain.errors import DatabaseAway
from shared.loop import keep_turning
from shared.observe.health import EXIT_HUNG, Health, Watchdog
from shared.observe.metrics import build


class Pauses(threading.Event):
    """Does not wait; remembers how long it should have, and stops after `turns` pauses."""

    def __init__(self, turns: int) -> None:
        super().__init__()
        self.turns = turns
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0.0)
        if len(self.seconds) == self.turns:
            self.set()
        return self.is_set()


def turned(
    turn: Callable[[], float], turns: int, beat: Callable[[], object] = lambda: None
) -> tuple[list[float], float]:
    """The pauses after each turn, and how many bugs were counted."""
    stopping, metrics = Pauses(turns), build("poller", strict=True)
    keep_turning("schedule", turn, stopping=stopping, beat=beat, metrics=metrics)
    return stopping.seconds, metrics.value("loop_bugs_total", loop="schedule")


def raising(*errors: Exception | None) -> Callable[[], float]:
    left = list(errors)

    def turn() -> float:
        error = left.pop(0)
        if error is not None:
            raise error
        return 7.0

    return turn


def test_a_loop_waits_as_long_as_its_turn_says() -> None:
    assert turned(raising(None, None), 2) == ([7.0, 7.0], 0)


def test_an_outage_is_waited_out_and_is_no_bug() -> None:
    beats: list[int] = []

    assert turned(raising(DatabaseAway("gone"), None), 2, lambda: beats.append(1)) == ([1.0, 7.0], 0)
    assert len(beats) == 3


def test_bugs_are_logged_with_their_traceback_counted_and_followed_by_growing_pauses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    beats: list[int] = []

    pauses, bugs = turned(raising(*[KeyError("a bug")] * 8, None, KeyError()), 10, lambda: beats.append(1))

    assert (pauses, bugs) == ([0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 7.0, 0.5], 9)
    assert len(beats) == 2, "one at the start, one for the turn that went well"
    assert "KeyError: 'a bug'" in caplog.text


def test_a_loop_of_bugs_alone_is_past_its_limit_and_ends_the_process() -> None:
    now = [0.0]
    left: list[int] = []
    health = Health(clock=lambda: now[0])
    watchdog = Watchdog(health, leave=left.append, clock=lambda: now[0])

    def bug() -> float:
        now[0] += 1.0
        watchdog.look()
        raise KeyError("a bug")

    turned(bug, 40, lambda: health.beat("schedule", 10.0))

    assert not health.live().ok
    assert left[0] == EXIT_HUNG
