"""Many threads, one write: what comes while a write is under way goes into the next one together."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


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
        self,
        work: Callable[[Sequence[Item]], Sequence[Answer]],
        *,
        passes: type[Exception] | tuple[type[Exception], ...],
    ) -> None:
        self._work = work
        self._passes = passes
        self._waiting: list[_Waiting[Item, Answer]] = []
        self._entering = threading.Lock()
        self._working = threading.Lock()

    def __call__(self, item: Item) -> Answer:
        """The answer for this item. Raises what `work` raised."""
        mine: _Waiting[Item, Answer] = _Waiting(item)
        with self._entering:
            self._waiting.append(mine)
        with self._working:
            if not mine.is_done:  # else a thread that was here before has done it
                with self._entering:
                    batch, self._waiting = self._waiting, []
                self._do(batch)
        if mine.error is not None:
            raise mine.error
        return mine.answer  # type: ignore[return-value]  # done without an error is answered

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
