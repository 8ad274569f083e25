"""The broker or the database goes away in mid-run and comes back: nobody exits, nothing is lost, nothing runs twice."""

import collections
import time
from collections.abc import Iterator

import pytest
import requests

from deploy.local import Stack
from shared.domain.messages import Order
from tests.e2e.system import System, an_order, some_orders
from tests.e2e.worker import Worker
from tests.servers import new_database, new_vhost
from tests.waiting import eventually

#: A quorum queue declared just before the broker is killed may be gone for good, so the tests begin later than this.
SETTLED_SECONDS = 5.0


@pytest.fixture(scope="module")
def system(_module_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Two workers of each kind and a producer, on servers that the tests stop and kill."""
    system = System(
        tmp_path_factory.mktemp("system"),
        new_database(_module_stack),
        _module_stack.broker.url_of(new_vhost(_module_stack)),
        gpus=2,
        # A small prefetch: each worker gets some of the orders, not one of them all.
        settings={
            "HTTP_PORT": 0,
            "CONFIRM_TIMEOUT_SECONDS": 0.5,
            "DRAIN_SECONDS": 3,
            "PREFETCH_INTAKE": 4,
            "PREFETCH_COMFYUI": 4,
        },
    )
    declared_at = time.monotonic()
    try:
        system.start(submitters=2, pollers=2)
        system.add("producer")
        eventually(lambda: time.monotonic() > declared_at + SETTLED_SECONDS, within=10, what="queues are settled")
        yield system
    finally:
        system.stop()


@pytest.fixture(autouse=True)
def _nobody_exits(system: System) -> Iterator[None]:
    """Unless asked to, and no order ends in a dead letter."""
    yield
    assert [worker.name for worker in system.workers if not worker.is_alive and not worker.said("draining")] == []
    assert system.sql("select * from dead_letters") == []


@pytest.fixture
def orders(system: System) -> list[Order]:
    """Forty of them, a few done, some at slow servers, many waiting."""
    for gpu in system.gpus:
        gpu.faults(seconds_per_image=0.5, slow={"seconds": 0.1, "paths": ["/prompt"]})
    orders = some_orders(40)
    system.place(*orders, publishers=4)
    eventually(lambda: system.statuses(orders).get("completed", 0) >= 4, within=30, what="it runs", every=0.01)
    assert system.statuses(orders)["pending"] >= 10
    return orders


def offer(system: System, order: Order) -> int:
    """POST it to the producer, as an upstream system does; the HTTP status."""
    [producer] = system.living("producer")
    [port] = [line["port"] for line in producer.said("listening")]
    answer = requests.post(f"http://127.0.0.1:{port}/v1/orders", data=order.model_dump_json(), timeout=30)
    return answer.status_code


def is_alive_and_unready(worker: Worker) -> bool:
    return not worker.is_ready()  # which raises for one that has ended


def deploy(system: System) -> None:
    """One worker of each kind is asked to leave, and another one is started."""
    services = ("submitter", "poller", "ops")
    leaving = [system.living(service)[0] for service in services]
    for worker in leaving:
        worker.terminate()
    for service in services:
        system.add(service, wait=False)
    assert [worker.ended() for worker in leaving] == [0, 0, 0]


def assert_all_made_once(system: System, orders: list[Order]) -> None:
    """After the outage, at servers that are quick now."""
    for gpu in system.gpus:
        gpu.heal()
    system.wait_ready(system.living(""))
    system.await_status("completed", *orders, within=90)
    accepted = collections.Counter(run["prompt_id"] for gpu in system.gpus for run in gpu.executions)
    attempts = system.sql(
        "select task_id, cast(job_key as text) as job_key from attempts where task_id = any(cast(:ids as uuid[]))",
        ids=[str(order.task_id) for order in orders],
    )
    jobs = collections.Counter({order.task_id: 0 for order in orders})
    for attempt in attempts:
        jobs[attempt.task_id] += accepted[attempt.job_key]
    assert set(jobs.values()) == {1}


def test_the_broker_restarted_in_mid_run_loses_nothing_and_doubles_nothing(
    system: System, orders: list[Order], private_stack: Stack
) -> None:
    private_stack.broker.stop()
    refused = an_order()
    assert offer(system, refused) == 503
    eventually(lambda: all(map(is_alive_and_unready, system.workers)), within=10, what="all say that they cannot work")
    assert system.statuses(orders).get("completed", 0) < len(orders)

    private_stack.broker.start()
    system.wait_ready(system.workers)
    assert offer(system, refused) == 202
    assert_all_made_once(system, [*orders, refused])


def test_workers_replaced_while_the_killed_broker_is_away_lose_nothing_and_double_nothing(
    system: System, orders: list[Order], private_stack: Stack
) -> None:
    private_stack.broker.kill()
    deploy(system)
    assert system.statuses(orders).get("completed", 0) < len(orders)

    private_stack.broker.start()
    assert_all_made_once(system, orders)


def test_the_database_restarted_in_mid_run_loses_nothing_and_doubles_nothing(
    system: System, orders: list[Order], private_stack: Stack
) -> None:
    private_stack.database.stop()
    taken = an_order()
    assert offer(system, taken) == 202  # the broker keeps it

    private_stack.database.start()
    assert system.statuses(orders).get("completed", 0) < len(orders)
    assert_all_made_once(system, [*orders, taken])


def test_workers_replaced_while_the_crashed_database_is_away_lose_nothing_and_double_nothing(
    system: System, orders: list[Order], private_stack: Stack
) -> None:
    private_stack.database.stop(immediate=True)
    deploy(system)

    private_stack.database.start()
    assert system.statuses(orders).get("completed", 0) < len(orders)
    assert_all_made_once(system, orders)
