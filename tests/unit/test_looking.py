"""Hints come in bursts: who looks when, and whether anything that ended in between is missed."""

from services.poller.looking import APART_SECONDS, Looking


class Clock:
    """Time that passes only while somebody pauses."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pauses: list[float] = []

    def pause(self, seconds: float) -> None:
        self.pauses.append(round(seconds, 6))
        self.now += seconds


def looking(clock: Clock) -> Looking:
    return Looking(clock.pause, lambda: clock.now)


def test_the_first_look_waits_for_nothing() -> None:
    clock = Clock()

    assert looking(clock).begin("gpu-1")
    assert clock.pauses == []


def test_who_comes_while_somebody_looks_leaves_it_to_them_to_look_again() -> None:
    hints = looking(Clock())

    assert hints.begin("gpu-1")
    assert not hints.begin("gpu-1")
    assert hints.begin("gpu-2")
    assert hints.end("gpu-1")
    assert not hints.end("gpu-2")


def test_two_looks_at_one_backend_begin_some_time_apart() -> None:
    clock = Clock()
    hints = looking(clock)
    hints.begin("gpu-1")
    hints.end("gpu-1")
    clock.now += APART_SECONDS / 4

    assert hints.begin("gpu-1")
    assert clock.pauses == [round(APART_SECONDS * 3 / 4, 6)]


def test_what_is_asked_while_a_look_waits_for_its_turn_is_answered_by_it() -> None:
    clock = Clock()

    def asked_meanwhile(seconds: float) -> None:
        clock.pause(seconds)
        assert not hints.begin("gpu-1")

    hints = Looking(asked_meanwhile, lambda: clock.now)
    hints.begin("gpu-1")
    hints.end("gpu-1")

    assert hints.begin("gpu-1")
    assert not hints.end("gpu-1")
