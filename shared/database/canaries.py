"""Rows of canary orders go again once they came through: one a minute would fill the table with nobody's orders."""

from typing import Final

import sqlalchemy as sa

from shared.database.engine import in_transaction
from shared.domain.canary_order import CANARY_POOL, KEY_PREFIX

#: One that a letter or another key refers to stays: a person may look at it.
_OLD: Final = sa.text("""
select t.id from tasks t
where t.status = 'completed' and t.created_at < now() - :older * interval '1 second' and t.due_at is null
    and t.pool = :pool and starts_with(t.idempotency_key, :prefix)
    and not exists (select from dead_letters d where d.task_id = t.id)
    and not exists (select from duplicate_keys k where k.task_id = t.id)
order by t.id limit 1000 for update skip locked
""")

_FORGET: Final = (
    sa.text("delete from artifacts where task_id = any(cast(:ids as uuid[])) returning key"),
    sa.text("delete from attempts where task_id = any(cast(:ids as uuid[]))"),
    sa.text("delete from task_moves where task_id = any(cast(:ids as uuid[]))"),
    sa.text("delete from tasks where id = any(cast(:ids as uuid[]))"),
)


def forget_canaries(engine: sa.Engine, older_than_seconds: float) -> list[str]:
    """Canary orders that came through and are older than this are gone. The keys of their pictures, to be deleted."""

    def work(c: sa.Connection) -> list[str]:
        old = {"older": older_than_seconds, "pool": CANARY_POOL, "prefix": KEY_PREFIX}
        ids = {"ids": [str(id_) for id_ in c.execute(_OLD, old).scalars()]}
        if not ids["ids"]:
            return []
        keys = list(c.execute(_FORGET[0], ids).scalars())
        for statement in _FORGET[1:]:
            c.execute(statement, ids)
        return keys

    return in_transaction(engine, work)
