"""The table `replays`: letters sent round again, each by one person at a time, and what came of it."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa

from shared.database.actions import note_action
from shared.database.engine import in_transaction
from shared.database.letters import LISTED, WHOLE, StoredLetter
from shared.database.moves import Change, move_in
from shared.database.rows import TASK, task_of
from shared.domain.task import Reason, Stage, Status, Task
from shared.observe.crash import CrashPoint, crash_point


class Way(StrEnum):
    """How a letter goes round again."""

    ROW = "row"  # failed -> pending
    MESSAGE = "message"  # it has no row: its body goes to `orders` once more
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a replay of this letter does now. why -- a sentence for a person."""

    letter: StoredLetter
    way: Way
    why: str
    task: Task | None = None
    deadline_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What a replay did. id -- its row in `replays`, None when it was refused."""

    id: int | None
    prediction: Prediction


@dataclass(frozen=True, slots=True)
class EventOwed:
    """Nothing was done: the row's `failed` event is not known to be out, and the row is about to forget it."""

    task: Task


_LETTERS: Final = sa.text(f"select {LISTED} from dead_letters d where d.id = any(cast(:ids as bigint[])) order by d.id")
_LOCK_LETTER: Final = sa.text(f"select {WHOLE} from dead_letters d where d.id = :id for update")
_TASKS: Final = sa.text(f"select {TASK} from tasks t where t.id = any(cast(:ids as uuid[]))")
#: Not FOR UPDATE: rows that refer to the task may be written meanwhile.
_LOCK_TASK: Final = sa.text(f"select {TASK} from tasks t where t.id = :id for no key update")
_ACTIVE: Final = sa.text("""
select order_id, id from tasks
where order_id = any(:order_ids) and status in ('pending', 'submitting', 'processing')
""")
_OPEN: Final = sa.text(
    "insert into replays (dead_letter_id, by_whom, task_id) values (:letter, :by_whom, :task) returning id"
)
_CLOSE_LETTER: Final = sa.text(
    "update dead_letters set state = 'replayed', closed_at = now(), closed_by = :by_whom where id = :id"
)
_PUBLISHED: Final = sa.text("""
update replays set state = 'closed', closed_at = now(), result = 'published'
where id = any(cast(:ids as bigint[])) and state = 'open' and task_id is null
""")
_UNPUBLISHED: Final = sa.text(f"""
select r.id as replay_id, {WHOLE} from replays r join dead_letters d on d.id = r.dead_letter_id
where r.state = 'open' and r.task_id is null and r.at < now() - :older * interval '1 second'
order by r.id limit 100
""")


def predicted(letter: StoredLetter, task: Task | None, active: uuid.UUID | None, default_deadline: float) -> Prediction:
    """What a replay does in this state of affairs. Pure.

    task   -- the letter's row, if it has one
    active -- an unfinished task for the same order_id
    """

    def refused(why: str) -> Prediction:
        return Prediction(letter=letter, way=Way.REFUSED, why=why, task=task)

    if letter.state != "open":
        return refused(f"already {letter.state} by {letter.closed_by}")
    if task is None:
        return _predicted_message(letter)
    if task.status is not Status.FAILED:
        return refused(f"its task is {task.status}, only failed ones are replayed")
    if task.attempt != letter.attempt:
        return refused(f"the letter is about attempt {letter.attempt}, the task failed at attempt {task.attempt}")
    if task.body is None:
        return refused("only the key of this order could be read, so the task has nothing to start")
    if task.cancel_owed:
        return refused("its last job is still being cancelled at the provider; try again in a minute")
    if active is not None:
        return refused(f"another task for order {task.order_id} is active: {active}")
    deadline = float(task.body.get("deadline_seconds") or default_deadline)
    why = f"pending again after attempt {task.attempt}, with all tries and {_span(deadline)} of time"
    if task.reason == Reason.OUTCOME_UNKNOWN:
        why += "; the provider may have made its picture already, and will be paid for another one"
    return Prediction(letter=letter, way=Way.ROW, why=why, task=task, deadline_seconds=deadline)


def _predicted_message(letter: StoredLetter) -> Prediction:
    if letter.stage != Stage.ORDERS:
        why = "not an order but a note between our own services, which the scheduler makes again by itself: discard it"
        return Prediction(letter=letter, way=Way.REFUSED, why=why)
    if not letter.has_body or "body" in letter.headers:
        how = letter.headers.get("body", "not there")
        return Prediction(letter=letter, way=Way.REFUSED, why=f"the message as it came was not kept: its body is {how}")
    why = "its body goes to `orders` once more"
    if letter.reason == Reason.CONFLICT:
        why += "; its key belongs to another order, so it will conflict again"
    elif letter.reason == Reason.INVALID_MESSAGE:
        why += "; it dies again unless what refused it has changed"
    return Prediction(letter=letter, way=Way.MESSAGE, why=why)


class Replays:
    """Previews and replays. default_deadline_seconds -- for orders that name none."""

    def __init__(self, engine: sa.Engine, default_deadline_seconds: float) -> None:
        self._engine = engine
        self._deadline = default_deadline_seconds

    def preview(self, ids: Sequence[int]) -> list[Prediction]:
        """What a replay of each letter would do now, oldest letter first; unknown ids are missing. Writes nothing."""
        return in_transaction(self._engine, lambda c: self._preview(c, ids))

    def replay(
        self, letter_id: int, by_whom: str, paid: int | None = None, *, why: str | None = None
    ) -> Replay | EventOwed | None:
        """Send one letter round, in one transaction; of any number of callers at once exactly one does.

        paid -- the version of the row whose `failed` event the caller knows to be out
        why  -- what the person says about it; kept with the deed

        None: no such letter. Raises DatabaseAway: it may have worked, and a second call then says "already replayed".
        """
        try:
            replay = in_transaction(self._engine, lambda c: self._replay(c, letter_id, by_whom, paid, why))
        except sa.exc.IntegrityError as error:
            why = _REFUSALS.get(getattr(getattr(error.orig, "diag", None), "constraint_name", None) or "")
            if why is None:
                raise
            refused = [
                Prediction(letter=p.letter, way=Way.REFUSED, why=why, task=p.task) for p in self.preview([letter_id])
            ]
            return Replay(id=None, prediction=refused[0]) if refused else None
        if isinstance(replay, Replay) and replay.id is not None:
            crash_point(CrashPoint.REPLAY_COMMITTED)
        return replay

    def unpublished(self, older_than_seconds: float) -> list[tuple[int, StoredLetter]]:
        """Replays of letters without a row whose message is not known to be out: their replayer may have died."""

        def read(row: sa.Row[Any]) -> tuple[int, StoredLetter]:
            values = dict(row._mapping)
            return values.pop("replay_id"), StoredLetter(**values)

        return in_transaction(
            self._engine, lambda c: [read(row) for row in c.execute(_UNPUBLISHED, {"older": older_than_seconds})]
        )

    def published(self, replay_ids: Sequence[int]) -> None:
        """The messages of these replays are confirmed."""
        in_transaction(self._engine, lambda c: c.execute(_PUBLISHED, {"ids": list(replay_ids)}))
        crash_point(CrashPoint.REPLAY_NOTED)

    def _preview(self, c: sa.Connection, ids: Sequence[int]) -> list[Prediction]:
        letters = [StoredLetter(**row._mapping) for row in c.execute(_LETTERS, {"ids": list(ids)})]
        wanted = {"ids": [str(letter.task_id) for letter in letters if letter.task_id is not None]}
        tasks = {row.id: task_of(row) for row in c.execute(_TASKS, wanted)}
        active = _active(c, tasks)
        return [
            predicted(letter, task, active.get(task.order_id or "") if task else None, self._deadline)
            for letter in letters
            for task in [tasks.get(letter.task_id) if letter.task_id else None]
        ]

    def _replay(
        self, c: sa.Connection, letter_id: int, by_whom: str, paid: int | None, why: str | None
    ) -> Replay | EventOwed | None:
        found = c.execute(_LOCK_LETTER, {"id": letter_id}).one_or_none()
        if found is None:
            return None
        letter = StoredLetter(**found._mapping)
        task = task_of(c.execute(_LOCK_TASK, {"id": letter.task_id}).one()) if letter.task_id is not None else None
        active = _active(c, {task.id: task}) if task is not None else {}
        prediction = predicted(
            letter, task, active.get(task.order_id or "") if task is not None else None, self._deadline
        )
        if prediction.way is Way.REFUSED:
            return Replay(id=None, prediction=prediction)
        if task is not None and task.due_at is not None and task.version != paid:
            return EventOwed(task)
        opened = {"letter": letter.id, "by_whom": by_whom, "task": task.id if task is not None else None}
        replay_id = int(c.execute(_OPEN, opened).scalar_one())
        c.execute(_CLOSE_LETTER, {"id": letter.id, "by_whom": by_whom})
        detail: dict[str, Any] = {"replay": replay_id, "way": prediction.way, "reason": letter.reason}
        detail |= {"why": why} if why is not None else {}
        if task is not None:
            change = Change(
                task=task,
                to=Status.PENDING,
                reason="replay",
                detail=f"dead letter {letter.id} replayed by {by_whom}",
                deadline_in=prediction.deadline_seconds,
            )
            if task.id not in move_in(c, [change], by_whom):
                raise RuntimeError(f"task {task.id} moved although its row is locked")
            detail |= {"task": str(task.id), "attempt": task.attempt, "deadline_seconds": prediction.deadline_seconds}
        note_action(c, by_whom, "dead letter replay", str(letter.id), detail)
        return Replay(id=replay_id, prediction=prediction)


#: Constraints that speak when two people come at the same moment.
_REFUSALS: Final[Mapping[str, str]] = {
    "tasks_one_active_order": "another task for the same order has just become active",
    "replays_one_open": "another replay of this letter is under way",
}


def _active(c: sa.Connection, tasks: Mapping[uuid.UUID, Task]) -> dict[str, uuid.UUID]:
    order_ids = sorted({task.order_id for task in tasks.values() if task.order_id is not None})
    if not order_ids:
        return {}
    return {row.order_id: row.id for row in c.execute(_ACTIVE, {"order_ids": order_ids})}


def _span(seconds: float) -> str:
    return f"{seconds / 3600:g} h" if seconds >= 3600 else f"{seconds:g} s"
