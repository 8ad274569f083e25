"""Orders as upstream systems and people ask for them: lists in pages, places in the queue, news. Writes nothing."""

import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from shared.database.engine import in_transaction
from shared.database.rows import PRIORITIES, TASK, task_of
from shared.domain.canary_order import CANARY_POOL
from shared.domain.task import Status, Task, task_id_for

#: Rows counted at most for one place in the queue: what a waiting customer is told need not be exact behind that.
COUNTED_AHEAD: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which orders a list is of; what is None or empty does not matter."""

    idempotency_key: str | None = None
    order_id: str | None = None
    pool: str | None = None
    statuses: Collection[Status] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a list: just behind this row, which need not match any more."""

    created_at: datetime
    id: uuid.UUID


#: Neither column ever changes, so no row comes twice, whatever is inserted or moved between two pages.
_BEHIND: Final = "(t.created_at, t.id) < (coalesce(cast(:at as timestamptz), 'infinity'), cast(:behind as uuid))"
_NEWEST_FIRST: Final = "order by t.created_at desc, t.id desc limit :limit"

#: One short scan of the index per status, also for a list of all: one index serves both. Canary orders are nobody's;
#: who wants to see them names their pool.
_OF_STATUSES: Final = sa.text(f"""
select {TASK} from unnest(cast(:statuses as text[])) s(status) cross join lateral (
    select * from tasks t where t.status = s.status and t.pool <> '{CANARY_POOL}' and {_BEHIND} {_NEWEST_FIRST}
) t {_NEWEST_FIRST}
""")

#: The same along an index of its own: of a pool of few orders nothing is read that is another's.
_OF_POOL: Final = sa.text(f"""
select {TASK} from unnest(cast(:statuses as text[])) s(status) cross join lateral (
    select * from tasks t where t.pool = :pool and t.status = s.status and {_BEHIND} {_NEWEST_FIRST}
) t {_NEWEST_FIRST}
""")

_OF_ORDER: Final = sa.text(f"""
select {TASK} from tasks t
where t.order_id = :order_id and (cast(:pool as text) is null or t.pool = :pool)
    and t.status = any(cast(:statuses as text[])) and {_BEHIND} {_NEWEST_FIRST}
""")

#: The task of this key, or the active task the key was kept with.
_OF_KEY: Final = sa.text(f"""
select {TASK} from tasks t
where (t.id = :id or t.id = (select d.task_id from duplicate_keys d where d.own_task_id = :id))
    and (cast(:order_id as text) is null or t.order_id = :order_id)
    and (cast(:pool as text) is null or t.pool = :pool)
    and t.status = any(cast(:statuses as text[])) and {_BEHIND} {_NEWEST_FIRST}
""")

#: Each arm along an index of its own.
_NAMED: Final = sa.text(f"""
select {TASK} from tasks t where t.id in (
    select n.id from tasks n where n.id = :id or n.id = :of_key
    union select d.task_id from duplicate_keys d where d.own_task_id = :id or d.own_task_id = :of_key
    union select a.task_id from attempts a where a.job_key = :id
    union select o.id from tasks o where o.order_id = :text
) {_NEWEST_FIRST}
""")

_IN_LINE: Final = "t.pool = :pool and t.status = 'pending' and t.free_at <= now() and t.deadline_at > now()"

#: The order of picking in slots.py, but for every fifth pick. Two arms, so that each is one stretch of tasks_free; the
#: count needs no order, it is there to have the index read from its start and no further than the limit.
_AHEAD: Final = sa.text(f"""
select count(*) from (
    (select 1 from tasks t where {_IN_LINE} and t.priority > :priority
        order by t.priority desc, t.created_at limit :limit)
    union all
    (select 1 from tasks t where {_IN_LINE} and t.priority = :priority and t.created_at < :created_at
        order by t.created_at limit :limit)
    limit :limit
) ahead
""")

_CHANGED: Final = sa.text(f"""
select w.id as asked, {TASK} from unnest(cast(:ids as uuid[]), cast(:versions as int[])) as w(id, version)
left join duplicate_keys d on d.own_task_id = w.id
join tasks t on t.id = coalesce(d.task_id, w.id)
where t.version > w.version
""")

_LAST_ID: Final = uuid.UUID(int=2**128 - 1)


class Listing:
    """Reads for those who place orders. Every method raises DatabaseAway and changes nothing."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def page(self, wanted: Filter, *, behind: Place | None, limit: int) -> list[Task]:
        """At most `limit` orders, the newest first, that come after the place `behind` (None: from the start)."""
        values: dict[str, object] = {
            "statuses": [str(status) for status in wanted.statuses or Status],
            "order_id": wanted.order_id,
            "pool": wanted.pool,
            "at": behind and behind.created_at,
            "behind": str(behind.id if behind else _LAST_ID),
            "limit": limit,
        }
        if wanted.idempotency_key is not None:
            statement = _OF_KEY
            values["id"] = task_id_for(wanted.idempotency_key)
        else:
            statement = _OF_ORDER if wanted.order_id is not None else _OF_POOL if wanted.pool else _OF_STATUSES
        return in_transaction(self._engine, lambda c: [task_of(row) for row in c.execute(statement, values)])

    def named(self, text: str, limit: int) -> list[Task]:
        """The orders that `text` can mean, the newest first: a task id, a job key, an idempotency key or an order id.

        A key that was kept with another order's task means that task.
        """
        try:
            id_: uuid.UUID | None = uuid.UUID(text)
        except ValueError:
            id_ = None
        values = {"id": id_, "of_key": task_id_for(text), "text": text, "limit": limit}
        return in_transaction(self._engine, lambda c: [task_of(row) for row in c.execute(_NAMED, values)])

    def ahead_of(self, task: Task) -> int | None:
        """How many rows of its pool are picked before a pending one, counted up to COUNTED_AHEAD.

        None: it is not waiting for its turn, but for the end of a backoff, or for nothing any more. Rows of one batch
        came at the same moment and do not count for each other.
        """
        if task.status is not Status.PENDING or task.free_at > task.now or task.is_past_deadline:
            return None
        values = {
            "pool": task.pool,
            "priority": PRIORITIES.index(task.priority),
            "created_at": task.created_at,
            "limit": COUNTED_AHEAD,
        }
        return in_transaction(self._engine, lambda c: int(c.execute(_AHEAD, values).scalar_one()))

    def changed(self, seen: Mapping[uuid.UUID, int]) -> dict[uuid.UUID, Task]:
        """The rows with a higher version than the one seen, by the id they were asked for.

        seen -- task id -> version, 0 for one that is not known yet
        """
        values = {"ids": [str(id_) for id_ in seen], "versions": list(seen.values())}
        return in_transaction(self._engine, lambda c: {row.asked: task_of(row) for row in c.execute(_CHANGED, values)})
