"""Rows of canary orders go again once they came through: one a minute would fill the table with nobody's orders."""

import uuid
from typing import Final

import sqlalchemy as sa

from shared.database.engine import in_transaction
from shared.database.purge import MAY_DELETE_MOVES, NOTE_PICTURES
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

#: No key stays behind as a tombstone: none of them ever comes again.
_FORGET: Final = tuple(
    sa.text(f"delete from {table} where {column} = any(cast(:ids as uuid[]))")
    for table, column in (("artifacts", "task_id"), ("attempts", "task_id"), ("task_moves", "task_id"), ("tasks", "id"))
)


def forget_canaries(engine: sa.Engine, older_than_seconds: float) -> list[uuid.UUID]:
    """Canary orders that came through and are older than this are gone; these are they. Their pictures are noted as
    those of a purge are, to be deleted next.
    """

    def work(c: sa.Connection) -> list[uuid.UUID]:
        old = {"older": older_than_seconds, "pool": CANARY_POOL, "prefix": KEY_PREFIX}
        found = list(c.execute(_OLD, old).scalars())
        if found:
            ids = {"ids": [str(id_) for id_ in found]}
            c.execute(MAY_DELETE_MOVES)
            for statement in (NOTE_PICTURES, *_FORGET):
                c.execute(statement, ids)
        return found

    return in_transaction(engine, work)
