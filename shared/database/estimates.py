"""What it takes to make orders again, guessed from what the last ones of their pool and workflow took."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import sqlalchemy as sa


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A guess. Where nothing of the kind was made lately, it says so instead of nothing.

    calls         -- POSTs to providers
    costs         -- unit -> amount, of the orders whose cost is known
    without_cost  -- orders of which nobody knows what they cost
    work_seconds  -- of all backends of the slowest pool together; None: none of its orders was made lately
    order_seconds -- of one order of the slowest pool, which each step of a ramp waits for
    """

    calls: int = 0
    costs: Mapping[str, float] = field(default_factory=dict)
    without_cost: int = 0
    work_seconds: float | None = 0.0
    order_seconds: float | None = 0.0


#: Of each backend the last 200 attempts are looked at, along attempts_started. An order in hand at several backends
#: takes as long as at one.
_MADE: Final = sa.text("""
with going as (
    select * from unnest(cast(:pools as text[]), cast(:workflows as text[]), cast(:orders as bigint[]))
        as g(pool, workflow, orders)
), made as (
    select b.pool, t.body ->> 'workflow' as workflow, a.posts, a.outcome,
        extract(epoch from a.ended_at - a.started_at) as seconds, coalesce(a.cost_actual, a.cost_estimated) as cost,
        a.cost_unit
    from backends b
    cross join lateral (
        select * from attempts l where l.backend = b.name order by l.started_at desc limit 200) a
    join tasks t on t.id = a.task_id
    where a.outcome = 'completed' and b.pool in (select g.pool from going g)
        and b.name = coalesce(cast(:backend as text), b.name)
), slots as (
    select b.pool, sum(least(b.capacity, b.limit_now)) filter (
        where b.enabled and b.health = 'up' and coalesce(b.paused_until <= now(), true)) as free
    from backends b where b.name = coalesce(cast(:backend as text), b.name) group by b.pool
)
select g.pool, g.orders, coalesce(s.free, 1) as slots, avg(m.posts)::float8 as posts, avg(m.seconds)::float8 as seconds,
    avg(m.cost)::float8 as cost, max(m.cost_unit) filter (where m.cost is not null) as unit
from going g
left join slots s on s.pool = g.pool
left join made m on m.pool = g.pool and m.workflow is not distinct from g.workflow
group by g.pool, g.workflow, g.orders, s.free
""")


def estimate_in(c: sa.Connection, orders: Mapping[tuple[str, str | None], int], backend: str | None = None) -> Estimate:
    """What it takes to make so many orders, in the caller's transaction.

    orders  -- (pool, workflow) -> how many
    backend -- the only one that makes them; None: any of their pool
    """
    if not orders:
        return Estimate()
    pools, workflows = map(list, zip(*orders, strict=True))
    values = {"pools": pools, "workflows": workflows, "orders": list(orders.values()), "backend": backend}
    rows = c.execute(_MADE, values).all()
    costs: dict[str, float] = {}
    for row in rows:
        if row.cost is not None:
            costs[row.unit or "?"] = costs.get(row.unit or "?", 0.0) + row.orders * row.cost
    work: dict[str, float] = {}
    for row in rows:
        work[row.pool] = work.get(row.pool, 0.0) + row.orders * (row.seconds or 0.0) / max(1, row.slots)
    is_known = all(row.seconds is not None for row in rows)
    return Estimate(
        calls=round(sum(row.orders * max(1.0, row.posts or 1.0) for row in rows)),
        costs=costs,
        without_cost=sum(row.orders for row in rows if row.cost is None),
        work_seconds=max(work.values(), default=0.0) if is_known else None,
        order_seconds=max((row.seconds for row in rows), default=0.0) if is_known else None,
    )
