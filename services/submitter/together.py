"""Rows that need nothing but their POST are started together: one write before all of them, one after those that end
together, and one thread for all.

Whatever is not plain about a row is left to `Start`, which does the same for one row, from where the row is by then.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

from services.submitter.insist import Insist
from services.submitter.start import Start
from shared.database.tasks import FRESH_SECONDS, Tasks
from shared.domain.errors import DarkroomError
from shared.domain.outcome import Verdict
from shared.domain.task import Task
from shared.observe.logs import ContextPool
from shared.providers.base import Accepted, GoOn, Job, Prepared, SubmitsTogether

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Row:
    task: Task
    verdict: "Future[Verdict]" = field(default_factory=Future)


#: Rows that have no verdict yet, and how each goes on when it must go on alone.
_Waiting = dict[_Row, Callable[[Task], Verdict]]


class Together:
    """calls -- for a set under way, and for rows that go on alone"""

    def __init__(
        self, tasks: Tasks, start: Start, insist: Insist, calls: ContextPool, *, lease_seconds: float, first_look: float
    ) -> None:
        self._tasks = tasks
        self._start = start
        self._insist = insist
        self._calls = calls
        self._lease = lease_seconds
        self._first_look = first_look

    def begin(self, provider: SubmitsTogether, tasks: Iterable[Task]) -> list["Future[Verdict]"]:
        """One verdict per row that was just taken, to come as its POST ends. They are of this provider, and plain."""
        rows = [_Row(task) for task in tasks]
        self._calls.submit(self._run, provider, rows)
        return [row.verdict for row in rows]

    def _run(self, provider: SubmitsTogether, rows: Sequence[_Row]) -> None:
        waiting: _Waiting = dict.fromkeys(rows, self._start)
        try:
            self._send(provider, waiting)
        except Exception:  # one of them is poison, or the worker is stopping: alone each meets it, or does not
            log.exception("rows taken apart", extra={"rows": len(waiting)})
        self._each_alone(waiting, list(waiting))

    def _send(self, provider: SubmitsTogether, waiting: _Waiting) -> None:
        prepared = _prepared(provider, waiting)
        looked = time.monotonic()
        posts = [(row.task, each.body_hash) for row, each in prepared.items()]
        allowed = self._insist(lambda: self._tasks.may_post(posts, self._lease))
        is_late = time.monotonic() - looked > self._lease - FRESH_SECONDS - provider.submit_limit_seconds
        ready = [row for row, is_ours in zip(prepared, allowed, strict=True) if is_ours and not is_late]
        self._each_alone(waiting, [row for row in waiting if row not in set(ready)])
        waiting.update(dict.fromkeys(ready, self._start.ask))
        for ended in provider.submit_together([prepared[row] for row in ready]):
            accepted: list[tuple[_Row, Accepted]] = []
            for place, found in ended:
                row = ready[place]
                waiting[row] = partial(self._start.go_on, looked=looked, rest=_known(found))
                if isinstance(found, Accepted):
                    accepted.append((row, found))
                    del waiting[row]
                else:
                    self._each_alone(waiting, [row])
            if waiting:  # their answers must be read in time, however long the database takes
                self._calls.submit(self._record, accepted, looked)
            else:
                self._record(accepted, looked)

    def _record(self, accepted: Sequence[tuple[_Row, Accepted]], looked: float) -> None:
        """Each is recorded; a row that moved meanwhile goes on alone."""
        alone: _Waiting = {row: partial(self._start.go_on, looked=looked, rest=_known(job)) for row, job in accepted}
        told: list[tuple[_Row, Verdict]] = []
        try:
            jobs = [(row.task, job) for row, job in accepted]
            recorded = self._insist(lambda: self._tasks.record(jobs, self._first_look)) if jobs else []
            for (row, _), now in zip(accepted, recorded, strict=True):
                if now is not None:
                    self._start.note_a_late_one(row.task, looked)
                    told.append((row, self._start.recorded(row.task, now)))
                    del alone[row]
        except Exception:  # as in `_run`
            log.exception("rows taken apart", extra={"rows": len(alone)})
        for row, verdict in told:
            row.verdict.set_result(verdict)
        self._each_alone(alone, list(alone))

    def _each_alone(self, waiting: _Waiting, rows: Sequence[_Row]) -> None:
        for row in rows:
            self._calls.submit(_answer, row, waiting.pop(row))


def _prepared(provider: SubmitsTogether, rows: Iterable[_Row]) -> dict[_Row, Prepared]:
    found = {}
    for row in rows:
        try:
            found[row] = provider.prepare(Job.of(row.task))
        except DarkroomError as error:
            log.info("not plain after all", extra={"task_id": row.task.id, "why": str(error)})
    return found


def _known(found: Accepted | GoOn) -> GoOn:
    return (lambda: found) if isinstance(found, Accepted) else found


def _answer(row: _Row, go_on: Callable[[Task], Verdict]) -> None:
    try:
        row.verdict.set_result(go_on(row.task))
    except BaseException as error:  # noqa: BLE001 - handed to who waits for the verdict, as a pool does
        row.verdict.set_exception(error)
