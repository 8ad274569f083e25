"""What became of orders lately, and since when letters wait: what the console's first page asks for itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from shared.database.engine import in_transaction

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
_BARS: Final = sa.text(f"""
select floor(extract(epoch from now() - at)::float8 / :seconds)::int as ago,
    count(*) filter (where to_status = 'completed') as completed,
    count(*) filter (where to_status = 'failed') as failed,
    count(*) filter (where to_status = 'cancelled') as cancelled
from ({_ENDS} limit :most) as ends group by 1 order by 1 desc
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
