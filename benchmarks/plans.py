"""Replay plans: how quickly 10,000 letters are looked at, and what sending them costs orders of another queue."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from benchmarks.measure import percentile
from benchmarks.orders import PIXELS, NotFinished, Rows, Upstream, placed, some_orders
from benchmarks.processes import Processes
from deploy.local.stack import Stack
from shared.database.adopt import Refused
from shared.database.engine import connect
from shared.database.letters import LetterFilter
from shared.database.migrate import upgrade
from shared.database.plans import Pace, Plans

_LETTERS: Final = 10_000
_RATE: Final = 100.0
#: Orders of the other queue in a second: far from what the workers can do, so that none waits for another.
_ORDERS_A_SECOND: Final = 10
_WITHIN_SECONDS: Final = 60.0
_TURNS: Final = 5
#: The pool of the dead letters has one GPU, which is slow: what goes round waits in the table, as it does in life.
_DEAD_POOL: Final = "slow"
_SLOW_SECONDS: Final = 2.0

_ROWS: Final = sa.text("""
insert into tasks (id, idempotency_key, order_id, fingerprint, pool, body, deadline_at, due_at, actor, trace_id)
select gen_random_uuid(), 'dead-' || n, 'order-' || n, 'f', :pool, jsonb_build_object('pool', :pool,
        'workflow', 'solid-invert', 'inputs', jsonb_build_object('width', :pixels, 'height', :pixels, 'color', n)),
    now() + interval '1 day', now() + interval '1 day', 'bench', md5(n::text)
from generate_series(1, :letters) n
""")
_FAIL: Final = sa.text("""
update tasks set status = 'failed', version = version + 1, reason = 'invalid_workflow', detail = 'no such workflow',
    stage = 'orders', finished_at = now(), told_at = now(), due_at = null
where pool = :pool
""")
_BURY: Final = sa.text("""
insert into dead_letters (identity, task_id, attempt, stage, reason, detail, fingerprint, pool, body)
select t.id || ':0:orders', t.id, 0, 'orders', t.reason, t.detail, 'bench', t.pool, '{}' from tasks t
where t.pool = :pool order by t.idempotency_key
""")
_TIMES: Final = """
select extract(epoch from finished_at)::float8 - cast(body -> 'metadata' ->> 'placed' as float8) as seconds from tasks
where status = 'completed' and body -> 'metadata' ->> 'phase' = :phase
"""


def measure_plans(stack: Stack, folder: Path, seconds: float) -> dict[str, Any]:
    """seconds -- how long orders of the other queue are placed at a time, alone and then while the plan is carried out

    Both take turns, so that what else the machine does meanwhile weighs on both alike.
    """
    database_url = stack.create_database("plans")
    upgrade(database_url)
    rows = Rows(database_url)
    engine = connect(database_url, pool_size=1)
    plans = Plans(engine)
    with Processes(stack, folder / "plans") as processes, Upstream(stack) as upstream:
        processes.start_simulators(1, 0, history_lag_seconds=0)
        processes.start_simulators(1, _SLOW_SECONDS, history_lag_seconds=None)
        processes.start_workers(database_url, 2, pools=["comfyui", _DEAD_POOL])
        _bury(engine)
        _place(upstream, rows, "warm-up", 3.0)
        looked = []
        for _ in range(3):
            began = time.monotonic()
            made = plans.make(LetterFilter(), "bench", pace=Pace(rate=_RATE, ramp=(), stop_at=None))
            looked.append(time.monotonic() - began)
            if isinstance(made, Refused):
                raise NotFinished(made.why)
        plan_id = made[0].id
        plans.apply(plan_id, "bench")
        alone: list[Sequence[float]] = []
        meanwhile: list[Sequence[float]] = []
        sent, sending_seconds = 0, 0.0
        for turn in range(_TURNS):
            plans.pause(plan_id, "bench")
            alone.append(_place(upstream, rows, f"alone-{turn}", seconds))
            before = rows.number("select count(*) from replays")
            plans.resume(plan_id, "bench")
            began = time.monotonic()
            meanwhile.append(_place(upstream, rows, f"meanwhile-{turn}", seconds))
            sending_seconds += time.monotonic() - began
            sent += rows.number("select count(*) from replays") - before
        plans.abort(plan_id, "bench")
        twice = rows.number("select count(*) - count(distinct dead_letter_id) from replays")
    engine.dispose()
    rows.close()
    ratios = [percentile(b, 0.5) / percentile(a, 0.5) for a, b in zip(alone, meanwhile, strict=True)]
    return {
        "letters": _LETTERS,
        "preview_seconds": sorted(looked)[1],
        "sent_per_second": sent / sending_seconds,
        "sent_twice": twice,
        "latency_alone_p50_seconds": percentile([one for each in alone for one in each], 0.5),
        "latency_meanwhile_p50_seconds": percentile([one for each in meanwhile for one in each], 0.5),
        "latency_ratios": ratios,
        "latency_ratio": percentile(ratios, 0.5),
    }


def _bury(engine: sa.Engine) -> None:
    with engine.begin() as c:
        c.execute(_ROWS, {"pool": _DEAD_POOL, "pixels": PIXELS, "letters": _LETTERS})
        c.execute(_FAIL, {"pool": _DEAD_POOL})
        c.execute(_BURY, {"pool": _DEAD_POOL})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
        c.execute(sa.text("vacuum analyze"))  # what autovacuum would do in the middle of the measurement


def _place(upstream: Upstream, rows: Rows, phase: str, seconds: float) -> Sequence[float]:
    """Place orders one by one at a steady pace; seconds from placing to completed, of each."""
    orders = some_orders(int(seconds * _ORDERS_A_SECOND))
    began = time.monotonic()
    for number, order in enumerate(orders):
        time.sleep(max(0.0, began + number / _ORDERS_A_SECOND - time.monotonic()))
        upstream.publish(placed([order.model_copy(update={"metadata": {"phase": phase, "placed": time.time()}})]))
    deadline = time.monotonic() + _WITHIN_SECONDS
    while len(found := rows.ask(_TIMES, phase=phase)) < len(orders):
        if time.monotonic() > deadline:
            raise NotFinished(f"{len(found)} of {len(orders)} orders ended after {_WITHIN_SECONDS:.0f} s")
        time.sleep(0.5)
    return [row.seconds for row in found]
