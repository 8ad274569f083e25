"""The evidence for `shared.domain.attribution`, read by one statement."""

import uuid
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from shared.database.engine import in_transaction
from shared.domain.attribution import Attribution, Seen, attribute

#: Through the index over (backend, started_at): one stretch of it for each backend. Of orders that failed there again
#: and again the last end counts. An attempt that ended as completed, cancelled or without a job says nothing bad.
_SEEN: Final = sa.text("""
select b.name as backend, b.pool, count(*) as tried,
    coalesce(jsonb_object_agg(e.task_id, e.bad) filter (where e.counts), '{}') as failed,
    coalesce(jsonb_agg(e.task_id) filter (where e.counts and t.status = 'completed'), '[]') as recovered
from backends b cross join lateral (
    select a.task_id, (array_agg(a.outcome order by a.attempt desc)
            filter (where a.outcome not in ('completed', 'cancelled', 'not_created')))[1] as bad
    from attempts a
    where a.backend = b.name and a.ended_at is not null and a.started_at < cast(:until as timestamptz)
        and a.started_at >= coalesce(cast(:since as timestamptz), now() - :seconds * interval '1 second')
    group by a.task_id) w
cross join lateral (select w.task_id, w.bad, w.bad is not null and (cast(:fingerprint as text) is null or exists (
    select 1 from dead_letters d where d.task_id = w.task_id and d.fingerprint = :fingerprint)) as counts) e
left join tasks t on t.id = e.task_id and e.counts
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
    rows = in_transaction(engine, lambda c: c.execute(_SEEN, values).all())
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
