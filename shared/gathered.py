"""Many threads, one write: what comes at about the same moment is written together."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")

#: How long a write waits at most for callers that are on their way, as PostgreSQL's commit_delay does for commits. They
#: have begun together more often than not, so they come together, and go on together to their next write.
PATIENCE_SECONDS: Final = 0.02


@dataclass(slots=True)
class _Waiting(Generic[Item, Answer]):
    item: Item
    answer: Answer | None = None
    error: BaseException | None = None
    is_done: bool = False


class Gathered(Generic[Item, Answer]):
    """`work`, which takes many items, to be called with one item from many threads.

    A lone caller waits for nobody. While a write is under way its successors gather; whoever comes first does it for
    all of them. So a loaded process pays for one transaction where an idle one pays for one too.

    work -- one answer per item, in order. When it raises with several items, each is tried alone, so that a poisoned
            one does not take its neighbours along; `passes` are raised for all at once
    """

    def __init__(
        self, work: Callable[[Sequence[Item]], Sequence[Answer]], *, passes: tuple[type[Exception], ...]
    ) -> None:
        self._work = work
        self._passes = passes
        self._coming = 0
        self._waiting: list[_Waiting[Item, Answer]] = []
        self._is_writing = False
        lock = threading.Lock()
        self._came = threading.Condition(lock)
        self._written = threading.Condition(lock)

    @contextmanager
    def on_the_way(self) -> Iterator[None]:
        """Around everything this thread does until its call is answered, or it is clear that it will not call."""
        with self._came:
            self._coming += 1
        try:
            yield
        finally:
            with self._came:
                self._coming -= 1
                self._came.notify()

    def __call__(self, item: Item) -> Answer:
        """The answer for this item. Raises what `work` raised."""
        mine: _Waiting[Item, Answer] = _Waiting(item)
        with self._came:
            self._waiting.append(mine)
            self._came.notify()
            while self._is_writing and not mine.is_done:
                self._written.wait()
            if not mine.is_done:
                self._is_writing = True
        if not mine.is_done:  # nobody else can have done it in between
            self._write()
        if mine.error is not None:
            raise mine.error
        return mine.answer  # type: ignore[return-value]  # done without an error is answered

    def _write(self) -> None:
        """For everybody who waits, and for who comes in time."""
        ends = time.monotonic() + PATIENCE_SECONDS
        with self._came:
            while len(self._waiting) < self._coming and (left := ends - time.monotonic()) > 0:
                self._came.wait(left)
            batch, self._waiting = self._waiting, []
        try:
            self._do(batch)
        finally:
            with self._written:
                self._is_writing = False
                self._written.notify_all()

    def _do(self, batch: Sequence[_Waiting[Item, Answer]]) -> None:
        try:
            answers = self._work([waiting.item for waiting in batch])
            if len(answers) != len(batch):
                raise RuntimeError(f"{len(answers)} answers for {len(batch)} items")
        except self._passes as error:
            for waiting in batch:
                waiting.error, waiting.is_done = error, True
        except BaseException as error:  # noqa: BLE001 - handed to the threads that asked
            if len(batch) == 1:
                batch[0].error, batch[0].is_done = error, True
            else:
                for waiting in batch:
                    self._do([waiting])
        else:
            for waiting, answer in zip(batch, answers, strict=True):
                waiting.answer, waiting.is_done = answer, True
