"""What the servers see: idle time while there is work, queue depth, how late a finish is noticed, reads per order.

Everything but the moment of our own move comes from the simulated servers' records. Their moments are the machine's
monotonic clock; ours are the database's wall clock on the same machine, so the difference of both clocks, read here
at the same moment, makes them comparable.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.measure import Meter, percentile
from benchmarks.orders import Rows, Upstream, placed, some_orders
from benchmarks.processes import WORKERS, Processes
from deploy.local.stack import Stack
from shared.database.migrate import upgrade

_SERVERS: Final = 4
_SECONDS_PER_IMAGE: Final = 0.5
_CAPACITY: Final = 2
_WITHIN_SECONDS: Final = 120.0
#: The many in flight: two servers that take a thousand each.
_MANY_SERVERS: Final = 2
_MANY_CAPACITY: Final = 1000
_SLOW_SECONDS: Final = 1.0

_DONE: Final = "select count(*) from tasks where status = 'completed' and due_at is null"
_IN_FLIGHT: Final = "select count(*) from tasks where status = 'processing'"


def measure_gpu(stack: Stack, folder: Path, orders: int) -> dict[str, Any]:
    """Four servers, half a second per picture, two jobs each; all orders are there from the beginning."""
    database_url = stack.create_database("gpu")
    upgrade(database_url)
    rows = Rows(database_url)
    with Processes(stack, folder / "gpu") as processes, Upstream(stack) as upstream:
        processes.start_simulators(_SERVERS, _SECONDS_PER_IMAGE, history_lag_seconds=None)
        processes.start_workers(database_url, _CAPACITY)
        warm_up = 2 * _SERVERS
        upstream.publish(placed(some_orders(warm_up)))
        rows.wait_until(_DONE, lambda found: found == warm_up, _WITHIN_SECONDS)
        reads_before = _reads(processes.statistics())
        upstream.publish(placed(some_orders(orders)))
        began = time.monotonic()
        rows.wait_until(_DONE, lambda found: found == warm_up + orders, _WITHIN_SECONDS)
        statistics = processes.statistics()
    reads = _reads(statistics) - reads_before
    lags = _lags(statistics, rows, since=began)
    rows.close()
    return {
        "orders": orders,
        "idle_share": _idle_share(statistics, began),
        "queue_depth_max": max(each["max_queue_remaining"] for each in statistics),
        "jobs_made_twice": sum(len(each["duplicates"]) for each in statistics),
        "lag_p50_seconds": percentile(lags, 0.50),
        "lag_p99_seconds": percentile(lags, 0.99),
        "reads_per_order": reads.total() / orders,
        "reads_per_order_by_path": {path: count / orders for path, count in reads.most_common()},
    }


def measure_many(stack: Stack, folder: Path, orders: int, hold_seconds: float) -> dict[str, Any]:
    """`orders` in flight on two servers that take a second each, for a while; then they take no time and all end."""
    database_url = stack.create_database("many")
    upgrade(database_url)
    rows = Rows(database_url)
    more = orders // 20  # wait for a slot all the while
    with Processes(stack, folder / "many") as processes, Upstream(stack) as upstream:
        processes.start_simulators(_MANY_SERVERS, _SLOW_SECONDS, history_lag_seconds=None)
        processes.start_workers(database_url, _MANY_CAPACITY)
        began = time.monotonic()
        upstream.publish(placed(some_orders(orders + more)))
        rows.wait_until(_IN_FLIGHT, lambda found: found >= orders - 2 * _MANY_SERVERS, _WITHIN_SECONDS)
        filled = time.monotonic()
        meter = Meter(processes.watched())
        time.sleep(hold_seconds)
        used = {name: cpu / hold_seconds for name, cpu in meter.used().items() if not name.startswith("simulator")}
        in_flight = rows.number(_IN_FLIGHT)
        held = time.monotonic()
        processes.tell_simulators({"seconds_per_image": 0, "history_lag_seconds": 0})
        rows.wait_until(_DONE, lambda found: found == orders + more, _WITHIN_SECONDS)
        drained = time.monotonic()
        memory = {name: _peak_megabytes(processes.pids()[name]) for name in WORKERS}
        statistics = processes.statistics()
    holding = _lags(statistics, rows, since=filled, until=held)
    draining = _lags(statistics, rows, since=held)
    rows.close()
    return {
        "in_flight": in_flight,
        "fill_seconds": filled - began,
        "held_seconds": hold_seconds,
        "busy_cores_while_held": used,
        "busy_cores_while_held_total": sum(used.values()),
        "lag_p50_seconds_while_held": percentile(holding, 0.50),
        "lag_max_seconds_while_held": max(holding, default=float("nan")),
        "drain_seconds": drained - held,
        "lag_max_seconds_while_draining": max(draining, default=float("nan")),
        "queue_depth_max": max(each["max_queue_remaining"] for each in statistics),
        "jobs_made_twice": sum(len(each["duplicates"]) for each in statistics),
        "peak_memory_megabytes": memory,
    }


def _reads(statistics: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """GET and HEAD by route, without the websocket's handshake."""
    found: Counter[str] = Counter()
    for each in statistics:
        found.update({c: n for c, n in each["calls"].items() if c.startswith(("GET ", "HEAD ")) and c != "GET /ws"})
    return found


def _idle_share(statistics: Sequence[Mapping[str, Any]], began: float) -> float:
    """Time without a running job, of the time from the orders' arrival until the last job was handed out."""
    ended = max(run["accepted_at"] for each in statistics for run in each["executions"])
    busy = 0.0
    for each in statistics:
        for run in each["executions"]:
            busy += max(0.0, min(run["ended_at"], ended) - max(run["started_at"], began))
    return 1 - busy / (len(statistics) * (ended - began))


def _lags(
    statistics: Sequence[Mapping[str, Any]], rows: Rows, *, since: float, until: float = float("inf")
) -> list[float]:
    """From the server's end of a job to our move, which is stamped inside the transaction that commits it."""
    wall_minus_monotonic = time.time() - time.monotonic()
    moves = rows.ask(
        "select t.job_key::text as job_key, extract(epoch from m.at)::float8 as at"
        " from task_moves m join tasks t on t.id = m.task_id where m.to_status = 'completed'"
    )
    moved = {row.job_key: row.at - wall_minus_monotonic for row in moves}
    return [
        moved[run["prompt_id"]] - run["ended_at"]
        for each in statistics
        for run in each["executions"]
        if run["ended_at"] is not None and since <= run["ended_at"] < until
    ]


def _peak_megabytes(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0
