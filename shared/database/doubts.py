"""Answers that are lost one after another close a backend that cannot be asked whether it is there.

Each such POST may have made a job that nobody can name, so the orders behind it are better kept than sent. Doubts are
counted in the row of the backend, for all workers together. Good answers write nothing there: whether one came in
between is looked up in `attempts`, and only when the next doubt comes.
"""

from typing import Final

import sqlalchemy as sa

#: One lost answer is an accident, and so may be two of orders that were sent together.
IN_A_ROW: Final = 3

#: Outcomes that an answer to the POST brought; all others may be had without one.
_ANSWERED: Final = "('completed', 'rejected', 'content_rejected', 'no_outputs')"

#: A job that was found after its answer was lost counts as an answer: orders are made there, if late. Attempts that
#: took longer than an hour to be answered are not looked for.
_NOTE: Final = sa.text(f"""
update backends b set doubted_at = clock_timestamp(), doubts = 1 + case when exists (
    select from attempts a where a.backend = b.name and a.started_at > b.doubted_at - interval '1 hour'
        and coalesce(a.accepted_at, case when a.outcome in {_ANSWERED} then a.ended_at end) > b.doubted_at
) then 0 else b.doubts end
where b.name = :name returning b.doubts
""")

_CLOSE: Final = sa.text("""
update backends set health = 'silent', health_detail = :detail, health_changed_at = now(),
    probe_seconds = :first, probe_at = now() + cast(:first as float8) * interval '1 second'
where name = :name and health = 'up'
""")


def note_doubt(c: sa.Connection, name: str, why: str, first_probe_seconds: float) -> bool:
    """Count one more; True when it closed the backend."""
    doubts = c.execute(_NOTE, {"name": name}).scalar_one_or_none() or 0
    if doubts < IN_A_ROW:
        return False
    detail = f"{doubts} orders in a row without a usable answer; the last: {why}"[:1000]
    return c.execute(_CLOSE, {"name": name, "detail": detail, "first": first_probe_seconds}).rowcount == 1
