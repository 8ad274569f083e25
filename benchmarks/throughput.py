"""Orders per second and CPU time per order with jobs that take no time: darkroom and the naive workers, same job."""

import json
import time
import uuid
from pathlib import Path
from typing import Any, Final

import psycopg2

from benchmarks import naive
from benchmarks.measure import Meter, memory_megabytes
from benchmarks.orders import Rows, Upstream, placed, some_orders
from benchmarks.processes import WORKERS, Processes
from deploy.local.stack import Stack
from shared.database.migrate import upgrade
from shared.domain.messages import Message

#: Orders before the measured ones: imports, connections, prepared plans.
_WARM_UP: Final = 200
#: More than the workers keep filled, and no more: with thousands ended and unnoticed, what is measured is their checks.
_CAPACITY: Final = 100
_WITHIN_SECONDS: Final = 120.0
_SIMULATORS: Final = 2


def measure_darkroom(stack: Stack, folder: Path, orders: int, memory_after: int) -> dict[str, Any]:
    """`orders` measured, then as many more as make `memory_after` in all, after which memory is read."""
    database_url = stack.create_database("throughput")
    upgrade(database_url)
    done = "select count(*) from tasks where status = 'completed' and due_at is null"
    rows = Rows(database_url)
    with Processes(stack, folder / "throughput") as processes, Upstream(stack) as upstream:
        processes.start_simulators(_SIMULATORS, 0, history_lag_seconds=0)
        processes.start_workers(database_url, _CAPACITY)
        upstream.publish(placed(some_orders(_WARM_UP)))
        rows.wait_until(done, lambda found: found == _WARM_UP, _WITHIN_SECONDS)
        messages = placed(some_orders(orders))
        meter = Meter(processes.watched())
        began = time.time()
        upstream.publish(messages)
        rows.wait_until(done, lambda found: found == _WARM_UP + orders, _WITHIN_SECONDS)
        used, others = meter.used(), meter.others()
        ended = float(rows.ask("select extract(epoch from max(finished_at)) from tasks")[0][0])
        more = max(0, memory_after - orders - _WARM_UP)
        upstream.publish(placed(some_orders(more)))
        rows.wait_until(done, lambda found: found == _WARM_UP + orders + more, _WITHIN_SECONDS)
        memory = {name: memory_megabytes(processes.pids()[name]) for name in WORKERS}
        calls = [each["calls"] for each in processes.statistics()]
        total = _WARM_UP + orders + more
        reads = sum(n for each in calls for call, n in each.items() if call.startswith("GET") and call != "GET /ws")
    rows.close()
    found = _summary(orders, ended - began, used, others)
    return found | {"reads_per_order": reads / total, "memory_megabytes": memory, "memory_after_orders": total}


def measure_naive(stack: Stack, folder: Path, orders: int) -> dict[str, Any]:
    """The same with one naive submitter and one naive poller."""
    database_url = stack.create_database("naive")
    with psycopg2.connect(database_url) as connection, connection.cursor() as cursor:
        cursor.execute(naive.TABLE)
    naive.declare(stack.amqp_url)
    pictures = folder / "naive" / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    done = "select count(*) from orders where status = 'completed'"
    rows = Rows(database_url)
    with Processes(stack, folder / "naive") as processes, Upstream(stack) as upstream:
        processes.start_simulators(_SIMULATORS, 0, history_lag_seconds=0)
        arguments = [stack.amqp_url, database_url, str(pictures), *processes.simulators]
        for role in ("submitter", "poller"):
            processes.start(role, "benchmarks.naive", [role, *arguments], {})
        warm_up = _WARM_UP // 4
        upstream.publish(_naive_messages(warm_up))
        rows.wait_until(done, lambda found: found == warm_up, _WITHIN_SECONDS)
        messages = _naive_messages(orders)
        meter = Meter(processes.watched())
        began = time.time()
        upstream.publish(messages)
        rows.wait_until(done, lambda found: found == warm_up + orders, _WITHIN_SECONDS)
        used, others = meter.used(), meter.others()
        ended = float(rows.ask("select extract(epoch from max(finished_at)) from orders")[0][0])
    rows.close()
    return _summary(orders, ended - began, used, others)


def _naive_messages(count: int) -> list[Message]:
    return [
        Message(
            routing_key=naive.ORDERS,
            type="naive.order",
            body=json.dumps({"idempotency_key": order.idempotency_key, "inputs": order.inputs}).encode(),
            message_id=str(uuid.uuid4()),
        )
        for order in some_orders(count)
    ]


def _summary(orders: int, seconds: float, used: dict[str, float], others: float) -> dict[str, Any]:
    """CPU by process in milliseconds per order, which are seconds per 1,000 orders too. The simulators stand apart."""
    simulators = sum(cpu for name, cpu in used.items() if name.startswith("simulator"))
    own = {name: cpu / orders * 1000 for name, cpu in used.items() if not name.startswith("simulator")}
    return {
        "orders": orders,
        "seconds": seconds,
        "orders_per_second": orders / seconds,
        "cpu_ms_per_order": own,
        "cpu_ms_per_order_total": sum(own.values()),
        "cpu_ms_per_order_simulators": simulators / orders * 1000,
        "busy_cores_of_others": others,
    }
