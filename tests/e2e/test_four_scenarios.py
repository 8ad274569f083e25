"""The four situations this project started from, and what goes with them, on three workers of each kind at once."""

import threading
from collections.abc import Iterator

import pytest

from shared.domain.messages import CheckTasks, Order, TaskRef, check, order_placed
from shared.domain.task import LEGAL_MOVES, Priority
from tests.e2e.conftest import Build
from tests.e2e.gpu import PAID
from tests.e2e.system import System, an_order, some_orders
from tests.waiting import eventually


@pytest.fixture(scope="module")
def system(build: Build) -> System:
    # A small prefetch: each worker gets some of the copies, not one of them all.
    system = build(gpus=2, capacity=3, settings={"PREFETCH_INTAKE": 4, "PREFETCH_COMFYUI": 4})
    system.start(submitters=3, pollers=3)
    return system


@pytest.fixture(autouse=True)
def _healthy(system: System) -> Iterator[None]:
    yield
    for gpu in system.gpus:
        gpu.heal()


def test_the_same_order_ten_times_at_once_makes_one_task_and_one_provider_job(system: System) -> None:
    order = an_order()
    system.place(*[order] * 10, publishers=10)

    system.await_status("completed", order)
    eventually(lambda: system.mail.depths()["orders"] == 0, within=20, what="all copies taken")
    assert len(system.sql("select 1 from tasks where idempotency_key = :key", key=order.idempotency_key)) == 1
    assert len(system.runs_of(order)) == 1
    assert system.events(order) == ["completed"]


def test_ten_copies_make_one_provider_job_when_every_answer_of_the_server_takes_50_ms(system: System) -> None:
    for gpu in system.gpus:
        gpu.faults(slow={"seconds": 0.05, "paths": ["*"], "before": True})
    order = an_order()
    system.place(*[order] * 10, publishers=10)

    system.await_status("completed", order)
    assert [run["outcome"] for run in system.runs_of(order)] == ["success"]


def test_a_hundred_orders_at_once_are_all_made_and_none_twice(system: System) -> None:
    orders = some_orders(100)
    system.place(*orders, publishers=10)

    rows = system.await_status("completed", *orders, within=90)
    assert {row.attempt for row in rows} == {1}
    assert [len(system.runs_of(order)) for order in orders[:10]] == [1] * 10
    accepted = [run["prompt_id"] for gpu in system.gpus for run in gpu.executions]
    assert sorted(accepted) == sorted(set(accepted))
    assert {str(row.job_key) for row in rows} <= set(accepted)


def test_many_pollers_on_the_same_tasks_leave_every_status_right(system: System) -> None:
    """Every running task is checked by all pollers at the same time, over and over, while some jobs end badly."""
    good, bad = some_orders(12), some_orders(4)
    for gpu in system.gpus:
        gpu.faults(fail_execution=[{"match": f'"color": {order.inputs["color"]}'} for order in bad])
    system.place(*good, *bad, publishers=4)
    done = threading.Event()

    def pester() -> None:
        """Three copies each time of a message that names every task, running or not."""
        while not done.wait(0.1):
            refs = [TaskRef(task_id=row.id, attempt=row.attempt) for row in system.rows([*good, *bad])]
            if refs:
                system.mail.publish([check("comfyui", CheckTasks(pool="comfyui", tasks=refs))] * 3)

    thread = threading.Thread(target=pester)
    thread.start()
    try:
        system.await_status("completed", *good)
        failed = system.await_status("failed", *bad)
    finally:
        done.set()
        thread.join()

    assert {row.reason for row in failed} == {"execution_failed"}
    for order in good:
        assert [run["outcome"] in PAID for run in system.runs_of(order)] == [True]
    for order in bad:  # one more attempt, then the end
        assert [run["outcome"] for run in system.runs_of(order)] == ["error", "error"]
        assert system.moves(order) == [
            ("pending", "submitting"),
            ("submitting", "processing"),
            ("processing", "pending"),
            ("pending", "submitting"),
            ("submitting", "processing"),
            ("processing", "failed"),
        ]
    legal = {(str(before), str(after)) for before, after in LEGAL_MOVES}
    assert {move for order in good for move in system.moves(order)} <= legal


def test_fifty_concurrent_writers_meet_no_lock_time_out_and_lose_nothing(system: System) -> None:
    """Fifty upstream systems write at the same moment, on connections of their own, each order of two of them."""
    orders = some_orders(100)
    system.mail.publish([order_placed(order) for order in orders * 2], publishers=50)

    system.await_status("completed", *orders, within=90)
    name = system.sql("select current_database() as name")[0].name
    [counts] = system.sql("select deadlocks, conflicts from pg_stat_database where datname = :name", name=name)
    assert (counts.deadlocks, counts.conflicts) == (0, 0)
    repeated = [line for worker in system.workers for line in worker.said("transaction repeated")]
    assert repeated == []
    outages = [line for worker in system.workers for line in worker.lines() if "outage" in str(line.get("event"))]
    assert outages == []


def test_fifty_threads_that_write_the_same_rows_never_wait_for_a_lock_in_vain(system: System) -> None:
    """Cancels of the same twenty orders from fifty connections, while the workers move these orders on."""
    orders = some_orders(20)
    system.place(*orders, publishers=4)
    eventually(lambda: len(system.rows(orders)) == len(orders), within=30, what="a row each", every=0.01)
    start, failures = threading.Barrier(50), []

    def cancel(number: int) -> None:
        start.wait(30)
        try:
            for order in orders[number % 2 :: 2]:
                system.cancel(order)
        except BaseException as error:  # noqa: BLE001 - any error is what this test is about
            failures.append(error)

    threads = [threading.Thread(target=cancel, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert sum(system.statuses(orders).get(status, 0) for status in ("completed", "cancelled")) == len(orders)
    for order in orders:
        assert len([move for move in system.moves(order) if move[1] in ("completed", "cancelled")]) == 1


def test_no_server_ever_has_more_jobs_than_it_takes(system: System) -> None:
    for gpu in system.gpus:
        gpu.faults(seconds_per_image=0.15)
    orders = some_orders(24)
    system.place(*orders, publishers=4)

    system.await_status("completed", *orders)
    assert [gpu.most_at_once() for gpu in system.gpus] == [gpu.capacity for gpu in system.gpus]


def test_high_priority_overtakes_what_waits(system: System) -> None:
    for gpu in system.gpus:
        gpu.faults(seconds_per_image=0.2)
    busy, normal = some_orders(6), some_orders(16)
    system.place(*busy)
    system.await_status("processing", *busy[:1])
    system.place(*normal)
    eventually(lambda: len(system.rows(normal)) == len(normal), within=20, what="normal orders wait")
    high = some_orders(4, priority=Priority.HIGH)
    system.place(*high)

    system.await_status("completed", *busy, *normal, *high)

    def started(orders: list[Order]) -> list[float]:
        return sorted(min(run["accepted_at"] for run in system.runs_of(order)) for order in orders)

    # Some normal orders had started before the high ones came, and each worker takes every fifth by age alone.
    last_high = started(high)[-1]
    overtaken = [at for at in started(normal) if at > last_high]
    assert len(overtaken) >= len(normal) // 2


def test_a_worker_that_is_asked_to_stop_finishes_what_it_holds_and_nothing_waits_for_its_lease(system: System) -> None:
    for gpu in system.gpus:
        gpu.faults(seconds_per_image=0.05, slow={"seconds": 0.2, "paths": ["/prompt"], "before": True})
    orders = some_orders(20)
    system.place(*orders, publishers=4)
    eventually(lambda: "processing" in system.statuses(orders), within=20, what="some run", every=0.01)

    leaving = [system.living(service)[0] for service in ("submitter", "poller", "ops")]
    for worker in leaving:
        worker.terminate()
    assert [worker.ended() for worker in leaving] == [0, 0, 0]
    assert [worker.said("work left unfinished; it comes back by itself") for worker in leaving] == [[], [], []]
    assert all(worker.said("draining") for worker in leaving)
    system.start()  # as a deploy does
    system.await_status("completed", *orders)
    for order in orders:
        assert ("submitting", "submitting") not in system.moves(order)
