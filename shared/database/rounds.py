"""The one way round for letters: a quick replay, a plan and an edited order all take it.

Letters and rows are locked, judged, and moved in one transaction, so of any number of people at once one does it.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from shared.database.actions import note_each
from shared.database.moves import Change, move_in
from shared.database.predictions import Outcome, Prediction, Terms, Way, predictions_in
from shared.database.rows import TASK, task_of
from shared.domain.task import Status, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How letters go round.

    default_deadline -- seconds for orders that name none
    despite          -- outcomes that are not refused this time, because somebody has decided so
    known_at         -- when they did; what has been completed since then is refused all the same; None: now
    pool             -- where the orders go instead of their own pool
    backend          -- the only one there that may make them; None: any
    paid             -- task -> version of its row whose `failed` event the caller knows to be out
    noted            -- kept with each deed, such as what the person says about it
    """

    default_deadline: float
    despite: frozenset[Outcome] = frozenset()
    known_at: datetime | None = None
    pool: str | None = None
    backend: str | None = None
    paid: Mapping[uuid.UUID, int] = field(default_factory=dict)
    noted: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What a replay did. id -- its row in `replays`, None when it was refused; task -- its row, pending again."""

    id: int | None
    prediction: Prediction
    task: Task | None = None


@dataclass(frozen=True, slots=True)
class EventOwed:
    """Nothing was done: the row's `failed` event is not known to be out, and the row is about to forget it."""

    task: Task


#: In the order of their ids, letters before tasks: two people with overlapping sets cannot deadlock.
_LOCK_LETTERS: Final = sa.text(
    "select id from dead_letters where id = any(cast(:ids as bigint[])) order by id for update"
)
#: Not FOR UPDATE: rows that refer to the task may be written meanwhile.
_LOCK_TASKS: Final = sa.text(f"""
select {TASK} from tasks t
where t.id in (select d.task_id from dead_letters d where d.id = any(cast(:ids as bigint[])))
order by t.id for no key update
""")
_OPEN: Final = sa.text("""
insert into replays (dead_letter_id, by_whom, task_id)
select v.letter, :by_whom, v.task from unnest(cast(:letters as bigint[]), cast(:tasks as uuid[])) as v(letter, task)
returning id, dead_letter_id
""")
_CLOSE_LETTERS: Final = sa.text("""
update dead_letters set state = 'replayed', closed_at = now(), closed_by = :by_whom
where id = any(cast(:letters as bigint[]))
""")
#: Constraints that speak when two people come at the same moment.
_REFUSALS: Final[Mapping[str, tuple[Outcome, str]]] = {
    "tasks_one_active_order": (
        Outcome.SUPERSEDED,
        "another task for the same order has just become active",
    ),
    "replays_one_open": (Outcome.NOT_OPEN, "another replay of this letter is under way"),
}


def replay_in(c: sa.Connection, letters: Sequence[int], by_whom: str, rules: Rules) -> dict[int, Replay | EventOwed]:
    """Send letters round in the caller's transaction. The one way for all; letters that do not exist are missing.

    Where a constraint finds that somebody else was quicker, each letter is tried alone, and that one is refused.
    """
    try:
        with c.begin_nested():
            return _together(c, letters, by_whom, rules)
    except sa.exc.IntegrityError as error:
        if _refusal(error) is None:
            raise
    found: dict[int, Replay | EventOwed] = {}
    for letter in sorted(set(letters)):
        try:
            with c.begin_nested():
                found |= _together(c, [letter], by_whom, rules)
        except sa.exc.IntegrityError as error:
            refusal = _refusal(error)
            if refusal is None:
                raise
            outcome, why = refusal
            (seen,) = predicted_by(c, [letter], rules)
            found[letter] = Replay(id=None, prediction=replace(seen, outcome=outcome, way=Way.REFUSED, why=why))
    return found


def predicted_by(c: sa.Connection, letters: Sequence[int], rules: Rules) -> list[Prediction]:
    """What becomes of these letters by these rules."""
    terms = Terms(despite=rules.despite, known_at=rules.known_at, pool=rules.pool, backend=rules.backend)
    return predictions_in(c, letters, rules.default_deadline, terms)


def locked(c: sa.Connection, letters: Sequence[int]) -> dict[uuid.UUID, Task]:
    """The rows of these letters. Both stay as they are until the end of the caller's transaction."""
    c.execute(_LOCK_LETTERS, {"ids": list(letters)})
    return {row.id: task_of(row) for row in c.execute(_LOCK_TASKS, {"ids": list(letters)})}


def _together(c: sa.Connection, letters: Sequence[int], by_whom: str, rules: Rules) -> dict[int, Replay | EventOwed]:
    tasks = locked(c, letters)
    predictions = predicted_by(c, letters, rules)
    found: dict[int, Replay | EventOwed] = {}
    going: list[tuple[Prediction, Task | None]] = []
    for p in predictions:
        task = tasks.get(p.task_id) if p.task_id is not None else None
        if p.way is Way.REFUSED:
            found[p.letter_id] = Replay(id=None, prediction=p)
        elif task is not None and task.due_at is not None and rules.paid.get(task.id) != task.version:
            found[p.letter_id] = EventOwed(task)
        else:
            going.append((p, task))
    return found | _sent(c, going, by_whom, rules) if going else found


def _sent(
    c: sa.Connection, going: Sequence[tuple[Prediction, Task | None]], by_whom: str, rules: Rules
) -> dict[int, Replay | EventOwed]:
    letters = [p.letter_id for p, _ in going]
    opened = {
        "letters": letters,
        "tasks": [None if p.task_id is None else str(p.task_id) for p, _ in going],
        "by_whom": by_whom,
    }
    ids = {row.dead_letter_id: int(row.id) for row in c.execute(_OPEN, opened)}
    c.execute(_CLOSE_LETTERS, {"letters": letters, "by_whom": by_whom})
    changes = [
        Change(
            task=task,
            to=Status.PENDING,
            reason="replay",
            detail=f"dead letter {p.letter_id} replayed by {by_whom}",
            deadline_in=p.deadline_seconds,
            pool=rules.pool if rules.pool != task.pool else None,
            pin=rules.backend,
        )
        for p, task in going
        if task is not None
    ]
    moved = move_in(c, changes, by_whom)
    if len(moved) < len(changes):
        raise RuntimeError(f"{len(changes) - len(moved)} tasks moved although their rows are locked")
    details = {str(p.letter_id): _detail(p, task, ids, rules) for p, task in going}
    note_each(c, by_whom, "dead letter replay", details)
    return {
        p.letter_id: Replay(id=ids[p.letter_id], prediction=p, task=None if task is None else moved[task.id])
        for p, task in going
    }


def _detail(p: Prediction, task: Task | None, ids: Mapping[int, int], rules: Rules) -> dict[str, Any]:
    detail: dict[str, Any] = {"replay": ids[p.letter_id], "way": p.way, "reason": p.reason, **rules.noted}
    if task is not None:
        detail |= {"task": str(task.id), "attempt": task.attempt, "deadline_seconds": p.deadline_seconds}
        detail |= {"from_pool": task.pool, "to_pool": p.pool} if p.pool != task.pool else {}
        detail |= {"to_backend": p.backend} if p.backend is not None else {}
    if p.superseded is not None:
        detail |= {"forced_although_completed": str(p.superseded)}
    return detail


def _refusal(error: sa.exc.IntegrityError) -> tuple[Outcome, str] | None:
    return _REFUSALS.get(getattr(getattr(error.orig, "diag", None), "constraint_name", None) or "")
