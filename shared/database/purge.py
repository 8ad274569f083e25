"""Old orders go for good, in batches: final tasks with all that belongs to them, and letters nobody waits for.

A key stays as a tombstone, so that a late copy of its order makes no second one. Pictures go last: the transaction
that deletes a task notes it in purged_pictures, and the note goes once its pictures are gone. Killed anywhere, no row
names a picture that is not there, and no picture is left that nobody knows of. The other way round, the pictures first,
a purge that is killed and never repeated would leave completed orders without pictures.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa

from shared.database.actions import note_action
from shared.database.claims import LOCK_NAMES
from shared.database.engine import in_transaction
from shared.domain.task import FINAL, Status

#: A key is remembered at least so long after its order is purged.
TOMBSTONE_DAYS: Final = 90
#: Tasks in one transaction: half a second, during which copies of these very orders wait.
_BATCH: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """letters -- those of the tasks, and those of no task; keys -- tombstones that have been kept long enough"""

    tasks: int
    letters: int
    pictures: int
    picture_bytes: int
    keys: int


@dataclass(frozen=True, slots=True)
class Place:
    """The last task that was looked at. Those that must stay are not looked at again in one run."""

    status: Status
    created_at: datetime
    id: uuid.UUID


#: Old is what ended before the cutoff and owes nothing, and whose letters were all closed before it: an open one still
#: waits for a person, and one that stands in its queue will. What a plan has not done with stays too, unless somebody
#: gave the plan up.
_PLANNED: Final = """
exists (select 1 from plan_items i join plans p on p.id = i.plan_id
    where i.dead_letter_id = d.id and i.state <> 'ended' and p.state <> 'aborted')
"""
_OLD: Final = f"""
t.finished_at < cast(:cutoff as timestamptz) and t.due_at is null
    and not exists (
        select 1 from dead_letters d
        where d.task_id = t.id and (d.state = 'open' or d.closed_at >= :cutoff or {_PLANNED}))
    and (t.status <> 'failed'
        or exists (select 1 from dead_letters d where d.task_id = t.id and d.attempt = t.attempt))
    and not exists (select 1 from replays r where r.task_id = t.id and r.state = 'open')
"""
_LOOSE: Final = f"""
d.task_id is null and d.state = any('{{replayed,discarded,archived}}') and d.closed_at < cast(:cutoff as timestamptz)
    and not {_PLANNED}
    and not exists (select 1 from replays r where r.dead_letter_id = d.id and r.state = 'open')
"""
#: A key is remembered for as long as a letter may bring its order once more: one without a row, whose key nobody may be
#: able to read, and which somebody may still replay.
_FORGOTTEN: Final = """
k.purged_at < now() - :days * interval '1 day' and not exists (
    select 1 from dead_letters d
    where d.state in ('open', 'archived') and d.task_id is null and d.stage = 'orders' and d.reason <> 'conflict')
"""
_COUNT: Final = sa.text(f"""
with old as (select t.id from tasks t where t.created_at < cast(:cutoff as timestamptz) and {_OLD})
select (select count(*) from old) as tasks,
    (select count(*) from dead_letters d where d.task_id in (select id from old))
        + (select count(*) from dead_letters d where {_LOOSE}) as letters,
    p.pictures, p.picture_bytes,
    (select count(*) from purged_keys k where {_FORGOTTEN}) as keys
from (select count(*) as pictures, coalesce(sum(a.bytes), 0)::bigint as picture_bytes
      from artifacts a where a.task_id in (select id from old)) p
""")
_CUTOFF: Final = sa.text("select now() - :seconds * interval '1 second'")

#: Through tasks_newest: nothing ends before it was created.
_CANDIDATES: Final = sa.text(f"""
select t.id, t.created_at, t.idempotency_key,
    array(select k.idempotency_key from duplicate_keys k where k.task_id = t.id) as kept_keys
from tasks t
where t.status = :status and t.created_at < cast(:cutoff as timestamptz)
    and (t.created_at, t.id) > (cast(:at as timestamptz), cast(:behind as uuid)) and {_OLD}
order by t.created_at, t.id limit :limit
""")
#: Letters first and rows second, as a replay does it; the row is judged once more when nothing can change any more.
_LOCK_LETTERS: Final = sa.text(
    "select id from dead_letters where task_id = any(cast(:ids as uuid[])) order by id for update"
)
_LOCK_TASKS: Final = sa.text(f"""
select t.id from tasks t where t.id = any(cast(:ids as uuid[])) and {_OLD} order by t.id for update skip locked
""")
_BURY: Final = sa.text("""
insert into purged_keys (idempotency_key, task_id, fingerprint, status, finished_at)
select t.idempotency_key, t.id, t.fingerprint, t.status, t.finished_at from tasks t
where t.id = any(cast(:ids as uuid[]))
union all
select k.idempotency_key, k.own_task_id, k.fingerprint, t.status, t.finished_at
from duplicate_keys k join tasks t on t.id = k.task_id where k.task_id = any(cast(:ids as uuid[]))
""")
#: Also pictures that no row names, of attempts that died before they could say so.
NOTE_PICTURES: Final = sa.text("""
insert into purged_pictures select id from tasks where id = any(cast(:ids as uuid[])) and attempt > 0
""")
MAY_DELETE_MOVES: Final = sa.text("set local darkroom.purging = 'on'")
_DELETE: Final = tuple(
    sa.text(statement)
    for statement in (
        "delete from replays where task_id = any(cast(:ids as uuid[])) or dead_letter_id in"
        " (select d.id from dead_letters d where d.task_id = any(cast(:ids as uuid[])))",
        "delete from dead_letters where task_id = any(cast(:ids as uuid[]))",
        "delete from artifacts where task_id = any(cast(:ids as uuid[]))",
        "delete from attempts where task_id = any(cast(:ids as uuid[]))",
        "delete from duplicate_keys where task_id = any(cast(:ids as uuid[]))",
        "delete from task_moves where task_id = any(cast(:ids as uuid[]))",
        "delete from tasks where id = any(cast(:ids as uuid[]))",
    )
)

_LOCK_LOOSE: Final = sa.text(
    f"select d.id from dead_letters d where {_LOOSE} order by d.id limit :limit for update skip locked"
)
_DELETE_LOOSE: Final = tuple(
    sa.text(statement)
    for statement in (
        "delete from replays where dead_letter_id = any(cast(:ids as bigint[]))",
        "delete from dead_letters where id = any(cast(:ids as bigint[]))",
    )
)
#: What people said of a group outlives its letters: it may fail again.
_EMPTY_GROUPS: Final = sa.text("""
delete from letter_groups g
where g.last_at < cast(:cutoff as timestamptz) and g.note is null and g.owner is null and g.fixed_in is null
    and not exists (select 1 from dead_letters d where d.fingerprint = g.fingerprint)
""")
_EMPTY_PLANS: Final = sa.text("""
delete from plans p where p.changed_at < cast(:cutoff as timestamptz) and p.state in ('done', 'aborted')
    and not exists (select 1 from plan_items i where i.plan_id = p.id)
""")
_PICTURES_LEFT: Final = sa.text("select task_id from purged_pictures order by task_id limit :limit")
_PICTURES_GONE: Final = sa.text("delete from purged_pictures where task_id = any(cast(:ids as uuid[]))")
#: A key that is used again names the same folder of pictures, so what stands there must be gone first.
_FORGET_KEYS: Final = sa.text(f"""
delete from purged_keys where idempotency_key in (
    select k.idempotency_key from purged_keys k
    where {_FORGOTTEN}
        and not exists (select 1 from purged_pictures p where p.task_id = k.task_id)
    order by k.purged_at limit :limit)
""")


class Purge:
    """Batches of a purge, each in a transaction of its own. Every method raises DatabaseAway: call it again.

    cutoff -- what ended later stays; asked of the database once, so that it does not move during a run
    """

    def __init__(self, engine: sa.Engine, older_than_seconds: float) -> None:
        self._engine = engine
        seconds = {"seconds": older_than_seconds}
        self.cutoff: datetime = in_transaction(engine, lambda c: c.execute(_CUTOFF, seconds).scalar_one())

    def count(self) -> Counts:
        """What would go now. Changes nothing."""
        values = {"cutoff": self.cutoff, "days": TOMBSTONE_DAYS}
        return in_transaction(self._engine, lambda c: Counts(**c.execute(_COUNT, values).one()._mapping))

    def tasks(self, by_whom: str, behind: Place | None) -> tuple[int, Place | None]:
        """Purge the next tasks behind a place; how many, and where to go on (None: that was the end)."""
        return in_transaction(self._engine, lambda c: self._tasks(c, by_whom, behind))

    def letters(self, by_whom: str) -> int:
        """Purge some of the old closed letters that have no task; how many, 0: there are none."""

        def work(c: sa.Connection) -> int:
            ids = [row.id for row in c.execute(_LOCK_LOOSE, {"cutoff": self.cutoff, "limit": _BATCH})]
            if ids:
                for statement in _DELETE_LOOSE:
                    c.execute(statement, {"ids": ids})
                note_action(c, by_whom, "purge", "dead letters", self._detail(len(ids)))
            return len(ids)

        return in_transaction(self._engine, work)

    def pictures_left(self) -> list[uuid.UUID]:
        """Some purged tasks whose pictures may still be in the store."""
        return in_transaction(self._engine, lambda c: list(c.execute(_PICTURES_LEFT, {"limit": _BATCH}).scalars()))

    def pictures_gone(self, task_ids: Sequence[uuid.UUID]) -> None:
        """The pictures of these tasks are deleted."""
        pictures_gone(self._engine, task_ids)

    def remains(self) -> None:
        """Groups without letters of which nobody said anything, and ended plans without letters."""

        def work(c: sa.Connection) -> None:
            for statement in (_EMPTY_GROUPS, _EMPTY_PLANS):
                c.execute(statement, {"cutoff": self.cutoff})

        in_transaction(self._engine, work)

    def keys(self, by_whom: str) -> int:
        """Forget some of the tombstones that have been kept long enough; how many, 0: there are none."""

        def work(c: sa.Connection) -> int:
            count = c.execute(_FORGET_KEYS, {"days": TOMBSTONE_DAYS, "limit": _BATCH}).rowcount
            if count:
                note_action(c, by_whom, "purge", "keys", {"count": count, "kept_days": TOMBSTONE_DAYS})
            return count

        return in_transaction(self._engine, work)

    def _tasks(self, c: sa.Connection, by_whom: str, behind: Place | None) -> tuple[int, Place | None]:
        place = behind or _start_of(_ORDER[0])
        values: dict[str, Any] = {"cutoff": self.cutoff, "limit": _BATCH}
        values |= {"status": place.status, "at": place.created_at, "behind": place.id}
        found = c.execute(_CANDIDATES, values).all()
        if not found:
            later = _ORDER[_ORDER.index(place.status) + 1 :]
            return 0, _start_of(later[0]) if later else None
        keys = [key for row in found for key in (row.idempotency_key, *row.kept_keys)]
        c.execute(LOCK_NAMES, {"order_ids": [], "keys": keys})
        c.execute(_LOCK_LETTERS, {"ids": [str(row.id) for row in found]})
        locked = c.execute(_LOCK_TASKS, {"ids": [str(row.id) for row in found], "cutoff": self.cutoff}).scalars().all()
        if locked:
            ids = {"ids": [str(task_id) for task_id in locked]}
            c.execute(MAY_DELETE_MOVES)
            for statement in (_BURY, NOTE_PICTURES, *_DELETE):
                c.execute(statement, ids)
            note_action(c, by_whom, "purge", "tasks", self._detail(len(locked)))
        return len(locked), Place(place.status, found[-1].created_at, found[-1].id)

    def _detail(self, count: int) -> dict[str, Any]:
        return {"count": count, "ended_before": self.cutoff.isoformat()}


def pictures_gone(engine: sa.Engine, task_ids: Sequence[uuid.UUID]) -> None:
    """The pictures of these purged tasks are deleted: the note that they were to be goes too."""
    values = {"ids": [str(task_id) for task_id in task_ids]}
    in_transaction(engine, lambda c: c.execute(_PICTURES_GONE, values))


_ORDER: Final = tuple(sorted(FINAL))


def _start_of(status: Status) -> Place:
    return Place(status, datetime(1, 1, 1, tzinfo=UTC), uuid.UUID(int=0))
