"""What became of orders lately, and since when letters wait: what the console's first page asks for itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from shared.database.engine import in_transaction
from shared.domain.canary_order import CANARY_POOL

#: Bars of the last hour, and seconds of each.
BARS: Final = 60
BAR_SECONDS: Final = 60
#: Ends of orders that are read at most; a busier hour is told from its end on.
_MOST: Final = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """How many orders ended in one minute. ago -- minutes since, 0 the one that is not over yet"""

    ago: int
    completed: int
    failed: int
    cancelled: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recent:
    """bars          -- minutes of the last hour in which an order ended, the oldest first
    since           -- none before it was read: the hour was too busy to read all of it
    oldest_letter   -- when the first of the open letters was recorded
    """

    bars: Sequence[Bar]
    since: datetime | None
    oldest_letter: datetime | None


#: Along an index of ends alone, which holds all that is asked for.
_ENDS: Final = """
select at, to_status from task_moves
where at > now() - :bars * :seconds * interval '1 second' and to_status in ('completed', 'failed', 'cancelled')
order by at desc
"""
#: Without canary orders, which nobody placed: a move does not say its pool, so those few are taken off again.
_BARS: Final = sa.text(f"""
select floor(extract(epoch from now() - at)::float8 / :seconds)::int as ago,
    greatest(0, coalesce(sum(n) filter (where to_status = 'completed'), 0))::int as completed,
    greatest(0, coalesce(sum(n) filter (where to_status = 'failed'), 0))::int as failed,
    greatest(0, coalesce(sum(n) filter (where to_status = 'cancelled'), 0))::int as cancelled
from (
    select at, to_status, 1 as n from ({_ENDS} limit :most) as ends
    union all
    select t.finished_at, t.status, -1 from tasks t where t.pool = '{CANARY_POOL}'
        and t.created_at > now() - 2 * :bars * :seconds * interval '1 second'
        and t.finished_at > now() - :bars * :seconds * interval '1 second'
) as counted group by 1 having sum(n) > 0 order by 1 desc
""")
_SINCE: Final = sa.text(f"select at from ({_ENDS} offset :most limit 1) as ends")
_OLDEST_LETTER: Final = sa.text("select min(at) from dead_letters where state = 'open'")


def read_recent(engine: sa.Engine) -> Recent:
    """Raises DatabaseAway."""
    values = {"bars": BARS, "seconds": BAR_SECONDS, "most": _MOST}

    def work(c: sa.Connection) -> Recent:
        return Recent(
            bars=[Bar(**row._mapping) for row in c.execute(_BARS, values)],
            since=c.execute(_SINCE, values).scalar_one_or_none(),
            oldest_letter=c.execute(_OLDEST_LETTER).scalar_one_or_none(),
        )

    return in_transaction(engine, work)
