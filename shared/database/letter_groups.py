"""The table `letter_groups`: failures of one kind, how many of them are open, and what people say about them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa

from shared.database.actions import note_action
from shared.database.engine import in_transaction


class Standing(StrEnum):
    """What people may think of a group."""

    UNFIXED = "unfixed"
    FIXED = "fixed"  # somebody says so, and it has not failed since
    REOPENED = "reopened"  # it has


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Failures of one fingerprint: one reason, one pool, one message once ids and numbers are masked.

    open          -- letters nobody has decided about
    total         -- ever recorded, whatever became of them; one that came back counts again
    first_at, last_at -- of any of them
    last_version  -- of the program that buried the last one, as far as it said so
    example       -- what happened, in the words of the newest one; None: all of them are purged
    """

    fingerprint: str
    reason: str
    pool: str | None
    open: int
    total: int
    first_at: datetime
    last_at: datetime
    backends: Sequence[str]
    workflows: Sequence[str]
    last_version: str | None
    note: str | None
    owner: str | None
    fixed_in: str | None
    fixed_at: datetime | None
    reopened_at: datetime | None
    example: str | None

    @property
    def standing(self) -> Standing:
        if self.fixed_at is None:
            return Standing.UNFIXED
        return Standing.FIXED if self.reopened_at is None else Standing.REOPENED


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFilter:
    """Which groups; what is None does not narrow. only_open -- with letters nobody has decided about"""

    reason: str | None = None
    pool: str | None = None
    backend: str | None = None
    workflow: str | None = None
    only_open: bool = True


#: The count reads one partial index and no letter. Examples are looked up for what is shown alone.
_FIND: Final = sa.text("""
select s.*, (select d.detail from dead_letters d where d.fingerprint = s.fingerprint order by d.id desc limit 1)
    as example
from (
    select g.*, coalesce(o.open, 0) as open
    from letter_groups g left join (
        select fingerprint, count(*) as open from dead_letters where state = 'open' group by fingerprint) o
        on o.fingerprint = g.fingerprint
    where (cast(:reason as text) is null or g.reason = :reason)
        and (cast(:pool as text) is null or g.pool = :pool)
        and (cast(:backend as text) is null or :backend = any(g.backends))
        and (cast(:workflow as text) is null or :workflow = any(g.workflows))
        and (not :only_open or o.open > 0)
    order by coalesce(o.open, 0) desc, g.last_at desc, g.fingerprint limit :limit) s
order by s.open desc, s.last_at desc, s.fingerprint
""")
_GET: Final = sa.text("""
select g.*, (select count(*) from dead_letters d where d.fingerprint = g.fingerprint and d.state = 'open') as open,
    (select d.detail from dead_letters d where d.fingerprint = g.fingerprint order by d.id desc limit 1) as example
from letter_groups g where g.fingerprint = :fingerprint
""")
_NOTE: Final = sa.text("update letter_groups set note = :value where fingerprint = :fingerprint returning fingerprint")
_OWNER: Final = sa.text(
    "update letter_groups set owner = :value where fingerprint = :fingerprint returning fingerprint"
)
_FIXED: Final = sa.text("""
update letter_groups set fixed_in = :value, fixed_at = case when cast(:value as text) is not null then now() end,
    reopened_at = null
where fingerprint = :fingerprint returning fingerprint
""")


class Groups:
    """Every method raises DatabaseAway. Those that say something answer whether there is such a group."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def find(self, wanted: GroupFilter | None = None, limit: int = 100) -> list[Group]:
        """The groups with the most open letters first."""
        wanted = wanted or GroupFilter()
        values = {
            "reason": wanted.reason,
            "pool": wanted.pool,
            "backend": wanted.backend,
            "workflow": wanted.workflow,
            "only_open": wanted.only_open,
            "limit": limit,
        }
        return in_transaction(self._engine, lambda c: [Group(**row._mapping) for row in c.execute(_FIND, values)])

    def get(self, fingerprint: str) -> Group | None:
        values = {"fingerprint": fingerprint}
        row = in_transaction(self._engine, lambda c: c.execute(_GET, values).one_or_none())
        return None if row is None else Group(**row._mapping)

    def note(self, fingerprint: str, text: str | None, by_whom: str) -> bool:
        """What whoever comes next should know; None takes it away."""
        return self._say(_NOTE, "note", fingerprint, text, by_whom)

    def own(self, fingerprint: str, owner: str | None, by_whom: str) -> bool:
        """Who looks after it; None: nobody."""
        return self._say(_OWNER, "owner", fingerprint, owner, by_whom)

    def fixed(self, fingerprint: str, version: str | None, by_whom: str) -> bool:
        """The version it is fixed in; None: it is not. The next failure of its kind opens it again."""
        return self._say(_FIXED, "fixed", fingerprint, version, by_whom)

    def _say(self, statement: sa.TextClause, what: str, fingerprint: str, value: str | None, by_whom: str) -> bool:
        def work(c: sa.Connection) -> bool:
            values: dict[str, Any] = {"fingerprint": fingerprint, "value": value}
            if c.execute(statement, values).one_or_none() is None:
                return False
            note_action(c, by_whom, f"dead letter group {what}", fingerprint, {what: value})
            return True

        return in_transaction(self._engine, work)
