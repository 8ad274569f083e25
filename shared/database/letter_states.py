"""Letters put aside, brought back and closed by people. Each with its line in operator_actions, in one transaction."""

from collections.abc import Sequence
from enum import StrEnum
from functools import partial
from typing import Final

import sqlalchemy as sa

from shared.database.actions import note_actions
from shared.database.engine import in_transaction


class Deed(StrEnum):
    """What people do with letters besides sending them round. Only an open letter is discarded or archived."""

    DISCARD = "discard"
    ARCHIVE = "archive"
    RESTORE = "restore"  # of an archived one; not when its order has moved on meanwhile


#: Locked in the order of ids, so that two people cannot deadlock.
_LOCKED: Final = "(select id from dead_letters where id = any(cast(:ids as bigint[])) order by id for update) as locked"
_CLOSE: Final = sa.text(f"""
update dead_letters d set state = :state, closed_at = now(), closed_by = :by_whom
from {_LOCKED} where d.id = locked.id and d.state = 'open' returning d.id
""")
_RESTORE: Final = sa.text(f"""
update dead_letters d set state = 'open', closed_at = null, closed_by = null
from {_LOCKED} where d.id = locked.id and d.state = 'archived' and (d.task_id is null
    or exists (select 1 from tasks t where t.id = d.task_id and t.status = 'failed' and t.attempt = d.attempt))
returning d.id
""")
_STATE_AFTER: Final = {Deed.DISCARD: "discarded", Deed.ARCHIVE: "archived"}

#: Letters in one transaction: a short one, so that nobody who needs one of them waits for long.
_CHUNK: Final = 1000


def do(engine: sa.Engine, deed: Deed, ids: Sequence[int], by_whom: str, why: str) -> set[int]:
    """Do it to those of these letters that allow it; answers which ones that were. Their rows stay failed.

    Killed between two transactions, the first of them are done. Raises DatabaseAway.
    """
    done: set[int] = set()
    for start in range(0, len(ids), _CHUNK):
        part = list(ids[start : start + _CHUNK])
        done |= in_transaction(engine, partial(_do, deed=deed, ids=part, by_whom=by_whom, why=why))
    return done


def _do(c: sa.Connection, deed: Deed, ids: Sequence[int], by_whom: str, why: str) -> set[int]:
    if deed is Deed.RESTORE:
        done = {row.id for row in c.execute(_RESTORE, {"ids": ids})}
    else:
        values = {"ids": ids, "by_whom": by_whom, "state": _STATE_AFTER[deed]}
        done = {row.id for row in c.execute(_CLOSE, values)}
    note_actions(c, by_whom, f"dead letter {deed}", map(str, sorted(done)), {"why": why})
    return done
