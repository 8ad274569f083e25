"""Orders that wait for a pool that takes no work go on in their next one."""

from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa

from shared.database.engine import in_transaction
from shared.database.rows import TASK, task_of
from shared.domain.fallback import following
from shared.domain.task import Task

#: A pool none of whose backends has taken or will take anything for so long. A pause of a few seconds is none.
_SHUT: Final = sa.text("""
select pool from backends group by pool having bool_and(not enabled
    or (health <> 'up' and health_changed_at < now() - :after * interval '1 second')
    or coalesce(paused_until > now() + :after * interval '1 second', false))
""")

#: Not those that a person has sent to one backend: a wait alone ends no pin.
_WAITING: Final = sa.text(f"""
select {TASK} from tasks t
where t.pool = any(:shut) and t.status = 'pending' and t.body -> 'pools' <> '[]'
    and t.changed_at < now() - :after * interval '1 second' and t.deadline_at > now()
    and t.pinned_backend is null and t.pool <> coalesce(t.body -> 'pools' -> -1 ->> 'pool', t.body -> 'pools' ->> -1)
order by t.changed_at limit :limit for update skip locked
""")

#: No move: the row waits as before, and nobody owns it. Its backoff was about backends of the pool that it leaves.
_GO_ON: Final = sa.text("""
update tasks t set pool = v.pool, charged = 0, free_at = now(), avoid_backend = null
from unnest(cast(:ids as uuid[]), cast(:pools as text[])) as v(id, pool) where t.id = v.id
""")


def fall_back(engine: sa.Engine, after_seconds: float, limit: int) -> Sequence[tuple[Task, str]]:
    """Up to `limit` rows, as they were, each with the pool it is in now. Raises DatabaseAway."""

    def work(c: sa.Connection) -> list[tuple[Task, str]]:
        values: dict[str, Any] = {"after": after_seconds, "limit": limit}
        shut = list(c.execute(_SHUT, values).scalars())
        if not shut:
            return []
        rows = [task_of(row) for row in c.execute(_WAITING, values | {"shut": shut})]
        going = [(row, pool) for row in rows if (pool := following(row)) is not None]
        if going:
            c.execute(_GO_ON, {"ids": [str(row.id) for row, _ in going], "pools": [pool for _, pool in going]})
        return going

    return in_transaction(engine, work)
