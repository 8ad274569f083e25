"""Transactions that really overlap: each work in a thread with its own connection, statement by statement."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import sqlalchemy as sa

from shared.database.engine import connect

T = TypeVar("T")

#: A statement that is not through after this long may be waiting for a lock, which the database is asked then.
_PATIENCE_SECONDS = 0.01
_BLOCKED = sa.text("select wait_event_type is not distinct from 'Lock' from pg_stat_activity where pid = :pid")
_DEADLINE_SECONDS = 60.0


class Died(Exception):
    """The worker died before the statement: its connection is gone, and nothing of its transaction stays."""


class Lane(Generic[T]):
    """One thread's connection, stopped before each statement until it has its turn. Kept for many works.

    die_before -- number of the statement it dies before, from 0; None: it lives
    """

    def __init__(self, url: str) -> None:
        self.engine = connect(url, pool_size=1)
        self._watch = connect(url, pool_size=1)
        with self.engine.connect() as connection:
            self._pid = connection.execute(sa.text("select pg_backend_pid()")).scalar_one()
        self.answer: T | None = None
        self.error: BaseException | None = None
        self.is_over = True
        self._may_go = threading.Semaphore(0)
        self._is_free = False
        self.came = threading.Event()
        self._statements = 0
        self._die_before: int | None = None
        sa.event.listen(self.engine, "before_cursor_execute", self._before)

    def start(self, work: Callable[[sa.Engine], T], die_before: int | None) -> None:
        self.answer, self.error, self.is_over = None, None, False
        self._statements, self._die_before, self._is_free = 0, die_before, False
        self._may_go = threading.Semaphore(0)
        self.came.clear()
        # At its first statement before anybody has a turn: the turns then mean the same every time.
        threading.Thread(target=self._run, args=(work,), daemon=True).start()
        self.came.wait(_DEADLINE_SECONDS)

    def go(self) -> None:
        """Let it do one statement; until it comes to the next one, is over, or waits for a lock of another lane."""
        self.came.clear()
        self._may_go.release()
        ends = time.monotonic() + _DEADLINE_SECONDS
        while not self.came.wait(_PATIENCE_SECONDS) and not self._is_blocked():
            assert time.monotonic() < ends, "a statement that neither ends nor waits"

    def close(self) -> None:
        self.engine.dispose()
        self._watch.dispose()

    def _is_blocked(self) -> bool:
        with self._watch.connect() as connection:
            return bool(connection.execute(_BLOCKED, {"pid": self._pid}).scalar_one())

    def set_free(self) -> None:
        self._is_free = True
        self._may_go.release()

    def _run(self, work: Callable[[sa.Engine], T]) -> None:
        try:
            self.answer = work(self.engine)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            self.error = error
        self.is_over = True
        self.came.set()

    def _before(self, *_: Any) -> None:
        if not self._is_free:
            self.came.set()
            self._may_go.acquire()
        here, self._statements = self._statements, self._statements + 1
        if here == self._die_before:
            raise Died


def interleaved(
    lanes: Sequence[Lane[T]],
    works: Sequence[Callable[[sa.Engine], T]],
    turns: Sequence[int],
    deaths: Sequence[int | None] = (),
) -> list[T | BaseException]:
    """The answer of each work, or what it raised. turns -- which one does its next statement."""
    used = lanes[: len(works)]
    for place, (lane, work) in enumerate(zip(used, works, strict=True)):
        lane.start(work, deaths[place] if place < len(deaths) else None)
    for turn in turns:
        waiting = [lane for lane in used if not lane.is_over]
        if not waiting:
            break
        waiting[turn % len(waiting)].go()
    for lane in used:
        lane.set_free()
    ends = time.monotonic() + _DEADLINE_SECONDS
    while not all(lane.is_over for lane in used):
        if time.monotonic() > ends:
            raise AssertionError("transactions that wait for each other for ever")
        time.sleep(0.001)
    return [lane.error if lane.error is not None else lane.answer for lane in used]  # type: ignore[misc]
