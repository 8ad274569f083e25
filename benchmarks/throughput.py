"""Orders per second and CPU time per order with jobs that take no time: darkroom and the naive workers, same job."""

import json
import time
import uuid
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import psycopg2

from benchmarks import naive
from benchmarks.measure import Meter, memory_megabytes, percentile
from benchmarks.orders import Rows, Upstream, placed, some_orders
from benchmarks.processes import WORKERS, Processes
from benchmarks.waits import commit_ms, delay_commits
from deploy.local.stack import Stack
from shared.database.migrate import upgrade
from shared.domain.messages import Message

#: Orders before the measured ones: imports, connections, prepared plans.
_WARM_UP: Final = 200
#: More than the workers keep filled, and no more: with thousands ended and unnoticed, what is measured is their checks.
_CAPACITY: Final = 100
_WITHIN_SECONDS: Final = 120.0
_SIMULATORS: Final = 2
_ROUNDS: Final = 3

_TASKS_ENDED: Final = "select extract(epoch from finished_at) from tasks where finished_at >= to_timestamp(:began)"
_ORDERS_ENDED: Final = "select extract(epoch from finished_at) from orders where finished_at >= to_timestamp(:began)"


def measure_speed(
    stack: Stack, folder: Path, orders: int, memory_after: int = 0, commit_delay_ms: float = 0
) -> dict[str, Any]:
    """Both in turn, several times, since a shared machine is a third quicker in one minute than in the next.

    What is told of each is that of the round whose ratio stands in the middle; `rounds` has all of them.

    memory_after    -- orders in all after which the memory of darkroom's workers is read; 0: after those measured
    commit_delay_ms -- every commit made slower by so much: what the ratio is on a slower disk
    """
    rounds = []
    for number in range(1, _ROUNDS + 1):
        name = f"{f'slow-commits-{commit_delay_ms:g}' if commit_delay_ms else 'speed'}-{number}"
        urls = [stack.create_database(f"{name}-{whose}") for whose in ("naive", "darkroom")]
        if commit_delay_ms:
            for whose in ("naive", "darkroom"):
                delay_commits(stack, f"{name}-{whose}", commit_delay_ms)
        naively = _naive(stack, urls[0], folder / f"{name}-naive", max(50, orders // 3))
        ours = _darkroom(stack, urls[1], folder / f"{name}-darkroom", orders, memory_after if number == 1 else 0)
        ratio = ours["orders_per_second"] / naively["orders_per_second"]
        rounds.append({"ratio": ratio, "naive": naively, "throughput": ours, "commit_ms": commit_ms(urls[0])})
    ratios = [each["ratio"] for each in rounds]
    middle = sorted(rounds, key=itemgetter("ratio"))[_ROUNDS // 2]
    memory = {name: rounds[0]["throughput"][name] for name in ("memory_megabytes", "memory_after_orders")}
    others = max(each[whose]["busy_cores_of_others"] for each in rounds for whose in ("naive", "throughput"))
    return {
        **middle,
        "least": min(ratios),
        "most": max(ratios),
        "memory": memory,
        "busy_cores_of_others": others,
        "rounds": rounds,
    }


def _darkroom(stack: Stack, database_url: str, folder: Path, orders: int, memory_after: int) -> dict[str, Any]:
    """`orders` measured, then as many more as make `memory_after` in all, after which memory is read."""
    upgrade(database_url)
    done = "select count(*) from tasks where status = 'completed' and due_at is null"
    rows = Rows(database_url)
    with Processes(stack, folder) as processes, Upstream(stack) as upstream:
        processes.start_simulators(_SIMULATORS, 0, history_lag_seconds=0)
        processes.start_workers(database_url, _CAPACITY)
        upstream.publish(placed(some_orders(_WARM_UP)))
        rows.wait_until(done, lambda found: found == _WARM_UP, _WITHIN_SECONDS)
        messages = placed(some_orders(orders))
        meter = Meter(processes.watched())
        began = time.time()
        upstream.publish(messages)
        rows.wait_until(done, lambda found: found == _WARM_UP + orders, _WITHIN_SECONDS)
        used = _used(meter)
        ended, middle = _ends(rows, _TASKS_ENDED, began)
        more = max(0, memory_after - orders - _WARM_UP)
        upstream.publish(placed(some_orders(more)))
        rows.wait_until(done, lambda found: found == _WARM_UP + orders + more, _WITHIN_SECONDS)
        memory = {name: memory_megabytes(processes.pids()[name]) for name in WORKERS}
        calls = [each["calls"] for each in processes.statistics()]
        total = _WARM_UP + orders + more
        reads = sum(n for each in calls for call, n in each.items() if call.startswith("GET") and call != "GET /ws")
    rows.close()
    found = _summary(orders, ended - began, middle, used)
    return found | {"reads_per_order": reads / total, "memory_megabytes": memory, "memory_after_orders": total}


def _naive(stack: Stack, database_url: str, folder: Path, orders: int) -> dict[str, Any]:
    """The same with one naive submitter and one naive poller."""
    with psycopg2.connect(database_url) as connection, connection.cursor() as cursor:
        cursor.execute(naive.TABLE)
    naive.declare(stack.amqp_url)
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    done = "select count(*) from orders where status = 'completed'"
    rows = Rows(database_url)
    with Processes(stack, folder) as processes, Upstream(stack) as upstream:
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
        used = _used(meter)
        ended, middle = _ends(rows, _ORDERS_ENDED, began)
    rows.close()
    return _summary(orders, ended - began, middle, used)


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


def _ends(rows: Rows, question: str, began: float) -> tuple[float, float]:
    """The moment the last one ended, and the seconds from the end of the first tenth to that of the ninth."""
    ended = sorted(float(row[0]) for row in rows.ask(question, began=began))
    return ended[-1], percentile(ended, 0.9) - percentile(ended, 0.1)


def _used(meter: Meter) -> dict[str, dict[str, float]]:
    return {"seconds": meter.used(), "cores": {"others": meter.others(), "idle": meter.idle()}}


def _summary(orders: int, seconds: float, middle: float, used: dict[str, dict[str, float]]) -> dict[str, Any]:
    """CPU by process in milliseconds per order, which are seconds per 1,000 orders too. The simulators stand apart.

    middle -- seconds that the middle eight tenths took, which is without start and tail
    """
    own = {name: cpu / orders * 1000 for name, cpu in used["seconds"].items()}
    simulators = sum(own.pop(name) for name in list(own) if name.startswith("simulator"))
    return {
        "orders": orders,
        "seconds": seconds,
        "orders_per_second": orders / seconds,
        "orders_per_second_middle": 0.8 * orders / middle,
        "cpu_ms_per_order": own,
        "cpu_ms_per_order_total": sum(own.values()),
        "cpu_ms_per_order_simulators": simulators,
        "busy_cores_of_others": used["cores"]["others"],
        "idle_cores": used["cores"]["idle"],
    }
