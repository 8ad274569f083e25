"""Rows that were looked at are decided side by side; all whose pictures have come meanwhile are completed together."""

import queue
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, Final

from services.poller.in_hand import InHand
from shared.database.moves import Change
from shared.domain.errors import Outage
from shared.domain.messages import Artifact
from shared.domain.task import Status, Task
from shared.gathered import PATIENCE_SECONDS
from shared.observe.logs import ContextPool
from shared.providers.base import FetchesTogether, Job, JobState, Provider, Succeeded

#: Threads that work on the rows of one message.
_SIDE_BY_SIDE: Final = 4
#: Rows that one of them takes at a time where there are more rows than threads: their pictures come together.
_AT_A_TIME: Final = 8

Looked = tuple[Task, Provider | None, JobState | None]
#: Fetches the pictures of a job that succeeded; may be called again.
Fetch = Callable[[], Iterable[BinaryIO]]


@dataclass(frozen=True, slots=True)
class Kept:
    """A job that succeeded, and its pictures, which are written and not yet settled."""

    row: Task
    state: Succeeded
    pictures: list[Artifact]

    @property
    def change(self) -> Change:
        return Change(
            task=self.row,
            to=Status.COMPLETED,
            artifacts=self.pictures,
            attempt_outcome="completed",
            cost=self.state.cost,
            ended_at=self.state.finished_at,
        )


Keep = Callable[[Kept], None]
#: Decides about one row; what is to be completed goes to Keep.
Decide = Callable[[Looked, Fetch, Keep], None]


class SideBySide:
    """For all threads."""

    def __init__(self, threads: ContextPool, in_hand: InHand) -> None:
        self._threads = threads
        self._in_hand = in_hand

    def decide(self, looked: Sequence[Looked], decide: Decide, complete: Callable[[Sequence[Kept]], None]) -> None:
        """Each row is in hand for as long as it takes itself, and no longer: while one picture trickles, the others of
        its message may end and come due. Raises Outage, once nobody works for this message any more.
        """
        portions = _portions(looked)
        todo = iter(portions)
        come: queue.SimpleQueue[list[Kept] | None] = queue.SimpleQueue()

        def work() -> None:
            try:
                for rows in todo:  # taking the next ones is a single step, for any number of threads
                    for kept in self._decided(rows, decide):
                        come.put(kept)
            finally:
                come.put(None)

        workers = [self._threads.submit(work) for _ in range(min(len(portions), _SIDE_BY_SIDE))]
        at_work = len(workers)
        outage: Outage | None = None
        while at_work:
            batch = _what_comes_together(come, at_work)
            at_work -= batch.count(None)
            kept = [one for some in batch if some is not None for one in some]
            try:
                complete(kept if outage is None else [])
            except Outage as error:
                outage = error
            finally:
                for one in kept:
                    self._in_hand.give_back(one.row)
        for worker in workers:
            worker.result()
        if outage is not None:
            raise outage

    def _decided(self, looked: Sequence[Looked], decide: Decide) -> Iterator[list[Kept]]:
        """What is kept stays in hand until it is completed."""
        mine = [one for one in looked if self._in_hand.take(one[0])]
        left = {row.id: row for row, _, _ in mine}
        try:
            for some in _with_pictures(mine):
                kept: list[Kept] = []
                for one_looked, fetch in some:
                    before = len(kept)
                    decide(one_looked, fetch, kept.append)
                    if len(kept) == before:
                        self._in_hand.give_back(left.pop(one_looked[0].id))
                for one in kept:
                    del left[one.row.id]
                if kept:
                    yield kept
        finally:
            for row in left.values():
                self._in_hand.give_back(row)


def _portions(looked: Sequence[Looked]) -> list[Sequence[Looked]]:
    """What one thread takes at a time: a row, or several of one provider whose pictures it can fetch together."""
    ended: dict[int, list[Looked]] = {}
    portions: list[Sequence[Looked]] = []
    for one in looked:
        _, provider, state = one
        if len(looked) > _SIDE_BY_SIDE and isinstance(state, Succeeded):
            ended.setdefault(id(provider), []).append(one)
        else:
            portions.append([one])
    for some in ended.values():
        at_a_time = _AT_A_TIME if isinstance(some[0][1], FetchesTogether) else 1
        portions += [some[at : at + at_a_time] for at in range(0, len(some), at_a_time)]
    return portions


def _with_pictures(portion: Sequence[Looked]) -> Iterator[list[tuple[Looked, Fetch]]]:
    """The rows of a portion, as their pictures have come."""
    provider = portion[0][1] if portion else None
    if len(portion) < 2 or not isinstance(provider, FetchesTogether):
        yield [(one, _alone(one)) for one in portion]
        return
    outputs = [state.outputs for _, _, state in portion if isinstance(state, Succeeded)]
    for ended in provider.fetch_together(outputs):
        yield [(portion[place], _fetched(found, _alone(portion[place]))) for place, found in ended]


def _alone(looked: Looked) -> Fetch:
    row, provider, state = looked
    outputs: Sequence[Mapping[str, Any]] = state.outputs if isinstance(state, Succeeded) else ()
    return partial(provider.fetch, Job.of(row), outputs) if provider is not None and outputs else tuple


def _fetched(found: Sequence[BinaryIO] | Exception, again: Fetch) -> Fetch:
    """What has come is given once; whoever calls again, after a bug, has it fetched."""
    once = [found]

    def fetch() -> Iterable[BinaryIO]:
        if not once:
            return again()
        files = once.pop()
        if isinstance(files, Exception):
            raise files
        return _closing(files)

    return fetch


def _closing(files: Sequence[BinaryIO]) -> Iterator[BinaryIO]:
    """All are closed in the end, also those that nobody came to."""
    with ExitStack() as opened:
        for file in files:
            opened.enter_context(file)
        yield from files


def _what_comes_together(come: queue.SimpleQueue[list[Kept] | None], at_work: int) -> list[list[Kept] | None]:
    """Waits for the first one, and for the others no longer than the patience: each batch is a round to the disk and
    a transaction, as dear for one row as for ten.
    """
    batch = [come.get()]
    ends = time.monotonic() + PATIENCE_SECONDS
    with suppress(queue.Empty):
        while batch.count(None) < at_work:
            batch.append(come.get(timeout=max(0.0, ends - time.monotonic())))
    return batch
