"""What people did by hand, read along its indexes: by whom, what, to what, when. Writes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from shared.database.engine import in_transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One row of operator_actions."""

    id: int
    at: datetime
    by_whom: str
    action: str
    subject: str
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionFilter:
    """Which actions; what is None does not narrow."""

    by_whom: str | None = None
    action: str | None = None
    subject: str | None = None
    since: datetime | None = None
    until: datetime | None = None


_PAGE: Final = sa.text("""
select id, at, by_whom, action, subject, detail from operator_actions
where (cast(:by_whom as text) is null or by_whom = :by_whom) and (cast(:action as text) is null or action = :action)
    and (cast(:subject as text) is null or subject = :subject)
    and (cast(:since as timestamptz) is null or at >= :since)
    and (cast(:until as timestamptz) is null or at < :until)
    and (cast(:behind as bigint) is null or id < :behind)
order by id desc limit :limit
""")

#: From one value to the next along the index: what it costs goes by the number of people, not of actions.
_VALUES: Final = """
with recursive known(value) as (
    (select {column} from operator_actions order by {column} limit 1)
    union all
    select (select {column} from operator_actions where {column} > known.value order by {column} limit 1)
    from known where known.value is not null
)
select value from known where value is not null limit 200
"""


class Actions:
    """Reads what people did. Every method raises DatabaseAway and changes nothing."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def page(self, wanted: ActionFilter, *, behind: int | None, limit: int) -> list[Action]:
        """At most `limit` actions, the newest first, that are older than the one numbered `behind`."""
        values = {
            "by_whom": wanted.by_whom,
            "action": wanted.action,
            "subject": wanted.subject,
            "since": wanted.since,
            "until": wanted.until,
            "behind": behind,
            "limit": limit,
        }
        return in_transaction(self._engine, lambda c: [Action(**row._mapping) for row in c.execute(_PAGE, values)])

    def people(self) -> Sequence[str]:
        """Everybody who ever did something, the first 200."""
        return self._values("by_whom")

    def actions(self) -> Sequence[str]:
        """Everything that was ever done."""
        return self._values("action")

    def _values(self, column: str) -> Sequence[str]:
        statement = sa.text(_VALUES.format(column=column))
        return in_transaction(self._engine, lambda c: c.execute(statement).scalars().all())
