"""What is, as numbers for gauges: one snapshot of the rows, cheap enough to be taken every few seconds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa

from shared.database.engine import in_transaction
from shared.database.rooms import TAKES_WORK
from shared.database.slots import Backend, read_backends
from shared.domain.task import Status

#: Every running row comes due at each of its looks, so only what is later than this is late.
GRACE_SECONDS: Final = 10.0
_LONGEST_SECONDS: Final = 5


class Bound(StrEnum):
    """A moment by which something should have happened to a row; label values of darkroom_tasks_overdue."""

    LEASE = "lease"
    POLL = "poll"
    DEADLINE = "deadline"
    FOLLOW_UP = "follow_up"


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """The unfinished tasks of one pool in one status. oldest_seconds -- since the one that came first got there"""

    pool: str
    status: Status
    count: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """dead_letters -- how many nobody has decided about, by (stage, reason)
    replays      -- by what has become of them, one of catalog.REPLAYS
    stuck        -- orders that wait for one backend alone which takes no work, by backend
    at_risk      -- jobs by backend whose result may vanish soon: nobody saw them running for half of its time
    connections, connections_limit -- of PostgreSQL, everybody's
    """

    waiting: Sequence[Waiting]
    overdue: Mapping[Bound, int]
    backends: Sequence[Backend]
    dead_letters: Mapping[tuple[str, str], int]
    replays: Mapping[str, int]
    stuck: Mapping[str, int]
    at_risk: Mapping[str, int]
    connections: int
    connections_limit: int


#: In two halves, each through its own partial index. Finished tasks are not counted: that would read the whole table.
_WAITING: Final = sa.text("""
select pool, status, count(*) as rows, extract(epoch from now() - min(changed_at))::float8 as oldest_seconds
from tasks where status in ('pending', 'submitting') group by pool, status
union all
select pool, status, count(*), extract(epoch from now() - min(changed_at))::float8
from tasks where status = 'processing' group by pool, status
""")

#: Through the index over due_at, which every row has that is owed anything.
_OVERDUE: Final = sa.text("""
select count(*) filter (where status = 'submitting') as lease,
    count(*) filter (where status = 'processing') as poll,
    count(*) filter (where status in ('completed', 'failed', 'cancelled')) as follow_up
from tasks where due_at < now() - :grace * interval '1 second'
""")

_PAST_DEADLINE: Final = sa.text("""
select (select count(*) from tasks where status in ('pending', 'submitting')
            and deadline_at < now() - :grace * interval '1 second')
    + (select count(*) from tasks where status = 'processing' and deadline_at < now() - :grace * interval '1 second')
""")

_DEAD_LETTERS: Final = sa.text("""
select stage, reason, count(*) as rows from dead_letters where state = 'open' group by stage, reason
""")

_REPLAYS: Final = sa.text("select coalesce(result, state) as became, count(*) as rows from replays group by 1")

_CONNECTIONS: Final = sa.text("""
select (select count(*) from pg_stat_activity where backend_type = 'client backend') as open,
    current_setting('max_connections')::int as at_most
""")


#: Through the index over result_until, which only jobs of providers have that throw results away.
_AT_RISK: Final = sa.text("""
select t.backend, count(*) as rows from tasks t join backends b on b.name = t.backend
where t.result_until < now() + 0.5 * b.result_ttl_seconds * interval '1 second' and t.status = 'processing'
group by t.backend
""")
#: Through the index of those rows alone.
_STUCK: Final = sa.text(f"""
select b.name as backend, count(*) as rows from tasks t join backends b on b.name = t.pinned_backend
where t.status = 'pending' and t.pinned_backend is not null and not {TAKES_WORK}
group by b.name
""")


def read_state(engine: sa.Engine) -> State:
    """All of it as of one moment. Raises DatabaseAway, or the driver's error when it takes longer than 5 s."""

    def questions(c: sa.Connection) -> State:
        c.execute(sa.text("set transaction isolation level repeatable read, read only"))
        c.execute(sa.text(f"set local statement_timeout = '{_LONGEST_SECONDS}s'"))
        grace: dict[str, Any] = {"grace": GRACE_SECONDS}
        late = c.execute(_OVERDUE, grace).one()
        connections = c.execute(_CONNECTIONS).one()
        return State(
            waiting=[
                Waiting(pool=row.pool, status=Status(row.status), count=row.rows, oldest_seconds=row.oldest_seconds)
                for row in c.execute(_WAITING)
            ],
            overdue={
                Bound.LEASE: late.lease,
                Bound.POLL: late.poll,
                Bound.FOLLOW_UP: late.follow_up,
                Bound.DEADLINE: c.execute(_PAST_DEADLINE, grace).scalar_one(),
            },
            backends=read_backends(c),
            stuck={row.backend: row.rows for row in c.execute(_STUCK)},
            at_risk={row.backend: row.rows for row in c.execute(_AT_RISK)},
            dead_letters={(row.stage, row.reason): row.rows for row in c.execute(_DEAD_LETTERS)},
            replays={row.became: row.rows for row in c.execute(_REPLAYS)},
            connections=connections.open,
            connections_limit=connections.at_most,
        )

    return in_transaction(engine, questions)
