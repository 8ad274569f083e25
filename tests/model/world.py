"""What the protocol is about as values: rows, workers, messages, and all of them together as one world. Pure."""

from collections.abc import Sequence
from typing import Final, NamedTuple

# Statuses, and what a server knows of a job. GONE: it never came, or the server has forgotten it without a file.
NONE, PENDING, SUBMITTING, PROCESSING = "unplaced", "pending", "submitting", "processing"
COMPLETED, FAILED, CANCELLED = "completed", "failed", "cancelled"
FINAL: Final = frozenset({COMPLETED, FAILED, CANCELLED})
GONE, LIVE, DONE, ENDED = "gone", "live", "done", "ended"

_MANY: Final = 2


class Row(NamedTuple):
    """A row of `tasks`, its letter, and its jobs at the server. said, counted and double are known to nobody."""

    status: str = NONE
    attempt: int = 0
    charged: int = 0
    lease: bool = False  # free_at of a row that was submitting lies ahead
    due: bool = False  # due_at is not null
    owed: bool = False  # cancel_owed
    told: bool = False  # told_at is not null
    late: bool = False  # past deadline_at
    check: bool = False  # a check message about this attempt is in the queue
    buried: bool = False  # a letter about this attempt is in the dead queue
    letter: str = ""  # of this attempt in `dead_letters`: open, closed, none
    is_newer: bool = False  # the row failed after the letter was last written or closed
    jobs: tuple[str, ...] = ()  # by attempt
    said: bool = False  # the last word of this final row was confirmed
    counted: bool = False  # a lease ended during a POST or just before it: possible_double
    double: bool = False  # the server got a job of this order while it had one

    @property
    def job(self) -> str:
        return self.jobs[self.attempt - 1] if self.attempt else GONE

    @property
    def holds_slot(self) -> bool:
        return self.status in {SUBMITTING, PROCESSING} or self.owed


class Worker(NamedTuple):
    """A thread with a row in hand. age -- moves of the row since it was read; flag -- see the step that sets it"""

    does: str = ""
    order: int = 0
    age: int = 0
    attempt: int = 0
    flag: bool = False


IDLE: Final = Worker()


class World(NamedTuple):
    """wire -- POSTs nobody waits for any more, (order, attempt) each; the numbers -- how often it may still happen"""

    rows: tuple[Row, ...]
    submitters: tuple[Worker, ...]
    pollers: tuple[Worker, ...]
    wire: tuple[tuple[int, int], ...] = ()
    permit: bool = False
    busy: int = 0
    replays: int = 0
    adopts: int = 0

    def __str__(self) -> str:
        texts = []
        for row in self.rows:
            marks = [name for name, value in row._asdict().items() if value is True]
            if row.letter:
                marks.append(f"letter {row.letter}")
            texts.append(f"{row.status} attempt {row.attempt} [{', '.join(marks)}] jobs {'/'.join(row.jobs) or '-'}")
        texts += [f"submitter {_text(w)}" for w in self.submitters if w != IDLE]
        texts += [f"poller {_text(w)}" for w in self.pollers if w != IDLE]
        texts += [f"POST of attempt {attempt} under way" for _, attempt in self.wire]
        return "; ".join(texts)


def _text(worker: Worker) -> str:
    return f"{worker.does}({worker.attempt})" + (f" -{worker.age}" if worker.age else "") + ("!" if worker.flag else "")


def is_being_said(world: World, order: int) -> bool:
    workers = (*world.submitters, *world.pollers)
    return any((w.does, w.order, w.age) == ("pay", order, 0) for w in workers)


def pending_again(row: Row) -> Row:
    return row._replace(status=PENDING, lease=False, due=True)


def with_row(world: World, order: int, row: Row) -> World:
    """Something of the row changes that is no move."""
    return world._replace(rows=(*world.rows[:order], row, *world.rows[order + 1 :]))


def with_move(world: World, order: int, row: Row) -> World:
    """The row moves: its version is another one than anybody has read."""
    return with_row(world, order, row)._replace(
        submitters=_older(world.submitters, order), pollers=_older(world.pollers, order)
    )


def _older(workers: Sequence[Worker], order: int) -> tuple[Worker, ...]:
    return tuple(w._replace(age=min(_MANY, w.age + 1)) if w != IDLE and w.order == order else w for w in workers)


def with_submitter(world: World, place: int, worker: Worker) -> World:
    there = world.submitters
    return world._replace(submitters=(*there[:place], worker, *there[place + 1 :]))


def with_poller(world: World, place: int, worker: Worker) -> World:
    there = world.pollers
    return world._replace(pollers=(*there[:place], worker, *there[place + 1 :]))


def on_the_wire(world: World, worker: Worker) -> World:
    """Its POST has nobody any more who waits for it. No more than two are ever under way at once."""
    return world._replace(wire=(*world.wire, (worker.order, worker.attempt))[:2])


def with_job(world: World, order: int, attempt: int, job: str) -> World:
    row = world.rows[order]
    return with_row(world, order, row._replace(jobs=(*row.jobs[: attempt - 1], job, *row.jobs[attempt:])))


def canonical(world: World) -> World:
    """One of all worlds that differ in nothing but names: of workers, of orders, of attempts that are over."""
    rows = tuple(
        row._replace(jobs=(*(j if j == LIVE else GONE for j in row.jobs[:-1]), row.jobs[-1]))
        if row.attempt > 1
        else row
        for row in world.rows
    )
    world = world._replace(
        rows=rows,
        submitters=tuple(sorted(world.submitters)),
        pollers=tuple(sorted(world.pollers)),
        wire=tuple(sorted(world.wire)),
    )
    return world if len(rows) == 1 else min(world, _swapped(world))


def _swapped(world: World) -> World:
    """The same with its two orders in each other's place."""

    def swap(workers: Sequence[Worker]) -> tuple[Worker, ...]:
        return tuple(sorted(w if w == IDLE else w._replace(order=1 - w.order) for w in workers))

    return world._replace(
        rows=world.rows[::-1],
        submitters=swap(world.submitters),
        pollers=swap(world.pollers),
        wire=tuple(sorted((1 - order, attempt) for order, attempt in world.wire)),
    )
