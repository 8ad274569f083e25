"""Orders that wait for one backend alone, as a person has said with a replay: those whose backend is gone."""

from collections.abc import Sequence
from typing import Final

import sqlalchemy as sa

from shared.database.engine import in_transaction
from shared.database.rows import TASK, task_of
from shared.domain.task import Task

#: A backend that is gone for moments only, as while two releases with different backends files start, is not gone.
_STRANDED: Final = sa.text(f"""
select case when b.enabled then b.name || ' serves another pool now'
        else b.name || ' is no longer in the backends file' end as why, {TASK}
from tasks t join backends b on b.name = t.pinned_backend
where t.status = 'pending' and t.pinned_backend is not null and t.deadline_at > now()
    and t.changed_at < now() - :after * interval '1 second'
    and (not b.enabled and b.gone_at < now() - :after * interval '1 second' or b.enabled and b.pool <> t.pool)
order by t.changed_at limit :limit
""")


def stranded(engine: sa.Engine, after_seconds: float, limit: int) -> Sequence[tuple[Task, str]]:
    """Rows that wait for one backend alone which serves their pool no more, and has not for so long; and a sentence
    that says so. Writes nothing. Raises DatabaseAway.
    """
    values = {"after": after_seconds, "limit": limit}
    rows = in_transaction(engine, lambda c: c.execute(_STRANDED, values).all())
    return [(task_of(row), f"a replay has sent it to one backend alone, and {row.why}") for row in rows]
