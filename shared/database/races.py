"""The table `lost_races`: moves that came too late, kept so that the story of an order tells who wanted what.

It is for people alone: nobody decides by it, and the audit of histories does not read it. So whatever goes wrong here
is logged, and neither the moves of the same transaction nor the loser's way on suffer from it.
"""

import logging
import uuid
from collections.abc import Container, Sequence
from typing import Final

import sqlalchemy as sa

from shared.database.moves import Change
from shared.observe.logs import redacted

log = logging.getLogger(__name__)

#: Characters of what a person may have typed, such as why to cancel.
_MAX_CHARS: Final = 200

#: Of each task the last so many. Two who fight about a row for a day, each every few seconds, would fill the table and
#: bury the story under their quarrel; what they fight about shows in the last few, and how often in transitions_total.
KEPT: Final = 20

#: The rows are held as they are found, so none can be purged before its record refers to it. That keeps nobody from
#: moving them, and whoever takes rows skips what is held.
_NOTE: Final = sa.text("""
with lost as (
    select v.*, t.status, t.version as found_version, t.attempt as found_attempt from tasks t
    join unnest(cast(:ids as uuid[]), cast(:attempts as int[]), cast(:expected as text[]), cast(:versions as int[]),
                cast(:wanted as text[]), cast(:reasons as text[]))
        as v(id, attempt, expected, version, wanted, reason) on t.id = v.id
    for key share of t
), noted as (
    insert into lost_races (task_id, actor, attempt, expected_status, expected_version, wanted_status, reason,
        found_status, found_version, found_attempt)
    select id, :actor, attempt, expected, version, wanted, reason, status, found_version, found_attempt from lost
)
delete from lost_races r using lost l
where r.task_id = l.id and r.id <= (
    select o.id from lost_races o where o.task_id = l.id order by o.id desc offset :kept - 1 limit 1)
""")


def note_lost(c: sa.Connection, changes: Sequence[Change], moved: Container[uuid.UUID], actor: str) -> None:
    """Keep those of the changes whose rows are not in `moved`, in the caller's transaction; no statement where all were
    made. A commit of our own whose answer was lost, and which is made again, is one that came too late too.

    Raises DBAPIError when the connection is gone, and nothing else: then the moves are not committed either.
    """
    lost = [change for change in changes if change.task.id not in moved]
    if not lost:
        return
    values = {
        "ids": [str(change.task.id) for change in lost],
        "attempts": [change.task.attempt for change in lost],
        "expected": [change.task.status for change in lost],
        "versions": [change.task.version for change in lost],
        "wanted": [change.to for change in lost],
        "reasons": [change.reason and redacted(change.reason, _MAX_CHARS) for change in lost],
        "actor": redacted(actor, _MAX_CHARS),
        "kept": KEPT,
    }
    try:
        with c.begin_nested():
            c.execute(_NOTE, values)
    except sa.exc.DBAPIError as error:
        if error.connection_invalidated:
            raise
        log.exception("lost race not kept", extra={"races": len(lost)})
