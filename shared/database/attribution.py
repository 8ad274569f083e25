"""The evidence for `shared.domain.attribution`, read by one statement."""

import uuid
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from shared.database.engine import in_transaction
from shared.domain.attribution import Attribution, Seen, attribute

#: Attempts of one backend that are read at most, the newest: a share needs no more, and a page must be quick.
_MOST: Final = 1000
#: Through the index over (backend, started_at): one stretch of it for each backend. Of an order
#: that was there again and again the last end counts, and what went well in the end says nothing bad. Letters are
#: looked up by task: there are fewer failures in the window than letters in a large group.
_SEEN: Final = sa.text("""
select b.name as backend, b.pool, count(*) as tried,
    coalesce(jsonb_object_agg(e.task_id, e.bad) filter (where e.counts), '{}') as failed,
    coalesce(jsonb_agg(e.task_id) filter (where
        case when e.counts then (select t.status = 'completed' from tasks t where t.id = e.task_id) end
    ), '[]') as recovered
from backends b cross join lateral (
    select a.task_id, (array_agg(case when a.outcome not in ('completed', 'cancelled', 'not_created') then a.outcome end
            order by a.attempt desc))[1] as bad
    from (select n.task_id, n.attempt, n.outcome, n.ended_at from attempts n
          where n.backend = b.name and n.started_at < cast(:until as timestamptz)
              and n.started_at >= coalesce(cast(:since as timestamptz), now() - :seconds * interval '1 second')
          order by n.started_at desc limit :most) a
    where a.ended_at is not null group by a.task_id) w
cross join lateral (
    select w.task_id, w.bad, w.bad is not null and (cast(:fingerprint as text) is null or :fingerprint = any(array(
        select d.fingerprint from dead_letters d where d.task_id = w.task_id))) as counts) e
group by b.name, b.pool
""")


def read_attribution(
    engine: sa.Engine, since: datetime, until: datetime, fingerprint: str | None = None
) -> Attribution:
    """Whether orders or backends are to blame for what failed in this window. Raises DatabaseAway.

    fingerprint -- only failures of orders with a letter of this group count; what was tried counts all the same
    """
    return _read(engine, {"since": since, "until": until, "fingerprint": fingerprint, "seconds": 0.0})


def recent_attribution(engine: sa.Engine, since_seconds: float, fingerprint: str | None = None) -> Attribution:
    """The same for the last seconds. Raises DatabaseAway."""
    return _read(engine, {"since": None, "until": "infinity", "fingerprint": fingerprint, "seconds": since_seconds})


def _read(engine: sa.Engine, values: dict[str, Any]) -> Attribution:
    rows = in_transaction(engine, lambda c: c.execute(_SEEN, values | {"most": _MOST}).all())
    return attribute(
        [
            Seen(
                backend=row.backend,
                pool=row.pool,
                tried=row.tried,
                failed={uuid.UUID(task_id): outcome for task_id, outcome in row.failed.items()},
                recovered=[uuid.UUID(task_id) for task_id in row.recovered],
            )
            for row in rows
        ]
    )
