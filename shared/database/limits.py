"""What a backend may have at once and begin in a time, shared by all workers: counted from rows, and learned from 429s.

The limit in flight is the capacity. A backend that says it is too fast gets half of what it has, and one more each
time as many new jobs as that were accepted: additive increase, multiplicative decrease. What is learned stands in the
row of the backend; accepted jobs are counted from `attempts`, so a start writes nothing there.
"""

from collections.abc import Collection
from typing import Final

import sqlalchemy as sa

#: A POST is this much longer on its way than the next one, so spans of a rate are taken longer by it.
MARGIN_SECONDS: Final = 0.1

#: Rates, too, are counted from rows: an attempt counts from when its POST was let go, and before that from when it was
#: taken. The clock is read after the lock on the backend was had. Who fetched pictures for longer than a minute is not
#: looked for.
STARTED: Final = sa.text(f"""
select b.name, (select count(*) from attempts a where a.backend = b.name
    and a.started_at > statement_timestamp() - (b.rate_seconds + 60) * interval '1 second'
    and coalesce(a.posted_at, a.started_at)
        > statement_timestamp() - (b.rate_seconds + {MARGIN_SECONDS}) * interval '1 second') as starts
from backends b where b.name = any(:rated)
""")

#: Of jobs begun together several are refused; only those begun after the last halving tell that it was not enough.
_HALVE: Final = sa.text("""
update backends b
set limit_now = greatest(1, least(coalesce(b.limit_now, b.capacity), live.jobs) / 2),
    limit_since = statement_timestamp(), limit_cut_at = statement_timestamp()
from attempts a, (select count(*)::int as jobs from tasks
    where backend = :backend and (status in ('submitting', 'processing') or cancel_owed)) live
where b.name = :backend and a.task_id = :task_id and a.attempt = :attempt
    and coalesce(a.started_at > b.limit_cut_at, true)
returning b.limit_now
""")

_WIDEN: Final = sa.text("""
update backends b
set limit_now = case when b.limit_now + 1 < b.capacity then b.limit_now + 1 end, limit_since = statement_timestamp()
where b.name = any(:names) and (
    select count(*) from attempts a where a.backend = b.name and a.started_at > b.limit_since
        and (a.accepted_at is not null or a.outcome = 'completed')) >= b.limit_now
returning b.name, coalesce(b.limit_now, b.capacity) as limit_now
""")


def halve(c: sa.Connection, backend: str, task_id: object, attempt: int) -> int | None:
    """The new limit after this attempt was told that it was too fast; None when that is no news."""
    values = {"backend": backend, "task_id": task_id, "attempt": attempt}
    return c.execute(_HALVE, values).scalar_one_or_none()


def widened(c: sa.Connection, narrowed: Collection[str]) -> dict[str, int]:
    """The new limits of those backends, locked by the caller, that have earned one more."""
    if not narrowed:
        return {}
    return {row.name: row.limit_now for row in c.execute(_WIDEN, {"names": list(narrowed)})}
