"""What other threads ask of the I/O thread is done in order, and what a turn has in common at its end."""

import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from shared.broker.connection import IOThread


@pytest.fixture
def io() -> Iterator[IOThread]:
    io = IOThread("io")
    io.start()
    yield io
    io.run(io.stop)
    io.join(5.0)


def kept_busy(io: IOThread) -> threading.Event:
    """Setting it lets the I/O thread go on; what is asked for until then waits."""
    busy, go = threading.Event(), threading.Event()

    def wait() -> None:
        busy.set()
        go.wait(10)

    io.run(wait)
    assert busy.wait(10)
    return go


def test_it_is_woken_once_for_all_that_waits_for_it(io: IOThread, monkeypatch: pytest.MonkeyPatch) -> None:
    wakes: list[Callable[[], None]] = []
    wake = io.loop.add_callback_threadsafe

    def woken(callback: Callable[[], None]) -> None:
        wakes.append(callback)
        wake(callback)

    go, done = kept_busy(io), threading.Event()
    monkeypatch.setattr(io.loop, "add_callback_threadsafe", woken)
    found: list[int] = []
    for number in range(50):
        io.run(partial(found.append, number))
    io.run(done.set)
    go.set()

    assert done.wait(10)
    assert found == list(range(50))
    assert len(wakes) == 1


def test_a_turn_ends_after_all_its_work_also_when_some_of_it_fails(io: IOThread) -> None:
    found: list[str] = []
    done = threading.Event()

    def fails() -> None:
        io.loop.at_turn_end(lambda: found.append("end"))
        io.loop.at_turn_end(done.set)
        raise ValueError("a bug")

    go = kept_busy(io)
    io.run(fails)
    io.run(lambda: found.append("work"))
    go.set()

    assert done.wait(10)
    assert found == ["work", "end"]


def test_what_fails_at_the_end_of_a_turn_takes_nothing_else_along(io: IOThread) -> None:
    recovered, done = threading.Event(), threading.Event()

    def fails() -> None:
        raise ValueError("a bug")

    def asks() -> None:
        io.loop.at_turn_end(fails)
        io.loop.at_turn_end(done.set)

    io._recoveries.append(recovered.set)
    io.run(asks)

    assert done.wait(10)
    assert recovered.is_set()
