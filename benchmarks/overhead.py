"""What metrics cost: every count, observation and gauge of a run, done once more and timed, beside the run's CPU time.

Two runs, one with metrics and one without, differ by more than the metrics take: by 14 % from turn to turn where this
was tried. The price of the same calls is the same each time.
"""

import json
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.measure import Meter
from benchmarks.orders import Rows, Upstream, placed, some_orders
from benchmarks.processes import WORKERS, Processes
from deploy.local.stack import Stack
from shared.broker.topology import topology
from shared.database.migrate import upgrade
from shared.observe.metrics import build

_WARM_UP: Final = 200
_CAPACITY: Final = 100
_SIMULATORS: Final = 2
_WITHIN_SECONDS: Final = 120.0
_DONE: Final = "select count(*) from tasks where status = 'completed' and due_at is null"
#: The quickest counts: what else the machine does only ever adds.
_TRIES: Final = 5


def measure_overhead(stack: Stack, folder: Path, orders: int) -> dict[str, Any]:
    """Of the CPU time of our processes, and of all that an order takes, broker and database included."""
    folder = folder / "overhead"
    database_url = stack.create_database("overhead")
    upgrade(database_url)
    rows = Rows(database_url)
    with Processes(stack, folder) as processes, Upstream(stack) as upstream:
        processes.start_simulators(_SIMULATORS, 0, history_lag_seconds=0)
        processes.start_workers(database_url, _CAPACITY, through=("benchmarks.counted", str(folder)))
        upstream.publish(placed(some_orders(_WARM_UP)))
        rows.wait_until(_DONE, lambda found: found == _WARM_UP, _WITHIN_SECONDS)
        messages = placed(some_orders(orders))
        meter = Meter(processes.watched())
        upstream.publish(messages)
        rows.wait_until(_DONE, lambda found: found == _WARM_UP + orders, _WITHIN_SECONDS)
        used = {name: cpu for name, cpu in meter.used().items() if not name.startswith("simulator")}
    rows.close()
    calls = {name: json.loads((folder / f"services.{name}.json").read_text()) for name in WORKERS}
    metrics_ms = sum(_price(name, made) for name, made in calls.items()) / (_WARM_UP + orders) * 1000
    ours_ms = sum(used[name] for name in WORKERS) / orders * 1000
    all_ms = sum(used.values()) / orders * 1000
    return {
        "calls_per_order": sum(map(len, calls.values())) / (_WARM_UP + orders),
        "cpu_ms_per_order": metrics_ms,
        "percent_of_ours": 100 * metrics_ms / ours_ms,
        "percent": 100 * metrics_ms / all_ms,
    }


def _price(service: str, calls: list[Any]) -> float:
    """CPU seconds that these calls take."""
    pools = ["comfyui"]
    queues = [queue.name for queue in topology(pools).queues]
    backends = [f"gpu-{number}" for number in range(1, _SIMULATORS + 1)]
    metrics = build(service, pools=pools, backends=backends, queues=queues)
    todo = [(getattr(metrics, verb), name, value, labels) for verb, name, value, labels in calls]
    quickest = float("inf")
    for _ in range(_TRIES):
        began = time.thread_time()
        for call, name, value, labels in todo:
            call(name, value, **labels)
        quickest = min(quickest, time.thread_time() - began)
    return quickest
