"""What every test of an outage does alike: orders under way, readiness and liveness meanwhile, all made once after."""

import collections
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import requests

from deploy.local import Stack
from shared.domain.messages import Order
from tests.e2e.system import System, some_orders
from tests.e2e.worker import Worker
from tests.servers import new_database
from tests.waiting import eventually

#: A quorum queue declared just before the broker is killed may be gone for good, so tests that kill begin later.
SETTLED_SECONDS = 5.0
#: Many workers get some of the orders, not one of them all; HTTP and a broker that does not confirm are noticed soon.
SETTINGS = {
    "HTTP_PORT": 0,
    "CONFIRM_TIMEOUT_SECONDS": 0.5,
    "DRAIN_SECONDS": 3,
    "PREFETCH_INTAKE": 4,
    "PREFETCH_COMFYUI": 4,
}


@contextmanager
def two_of_each(stack: Stack, folder: Path) -> Iterator[System]:
    """Two workers of each kind and a producer, on the broker's own virtual host: it is there on an empty disk too."""
    system = System(folder, new_database(stack), stack.broker.url, gpus=2, settings=SETTINGS)
    try:
        system.start(submitters=2, pollers=2)
        system.add("producer")
        time.sleep(SETTLED_SECONDS)
        yield system
    finally:
        system.stop()


def under_way(system: System, count: int = 40) -> list[Order]:
    """That many orders: a few done, some at slow servers, many waiting."""
    for gpu in system.gpus:
        gpu.faults(seconds_per_image=0.5, slow={"seconds": 0.1, "paths": ["/prompt"]})
    orders = some_orders(count)
    system.place(*orders, publishers=4)
    eventually(lambda: system.statuses(orders).get("completed", 0) >= 4, within=30, what="it runs", every=0.01)
    assert system.statuses(orders)["pending"] >= count // 4
    return orders


def post(system: System, order: Order, port: int | None = None, timeout: float = 30) -> int:
    """POST it to the producer, as an upstream system does; the HTTP status."""
    if port is None:
        port = port_of(system.living("producer")[0])
    body = order.model_dump_json()
    return requests.post(f"http://127.0.0.1:{port}/v1/orders", data=body, timeout=timeout).status_code


def port_of(producer: Worker) -> int:
    """Of its HTTP interface."""
    [port] = [line["port"] for line in producer.said("listening")]
    return int(port)


def is_alive_and_unready(worker: Worker) -> bool:
    return not worker.is_ready()  # which raises for one that has ended


def await_unready(workers: Iterable[Worker], check: str, within: float = 20) -> None:
    """Each of them says that it is this check that keeps it from working."""
    for worker in workers:
        eventually(lambda w=worker: check in w.unready(), within=within, what=f"{worker.name} unready for {check}")  # type: ignore[misc]


@contextmanager
def nobody_dies(system: System) -> Iterator[None]:
    """Every worker that lives now answers that it is alive, all the time, and lives at the end."""
    workers = system.living("")
    wrong: list[str] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.5):
            for worker in workers:
                try:
                    if not worker.is_live():
                        wrong.append(f"{worker.name} says that it is not alive")
                except (AssertionError, requests.RequestException) as error:
                    wrong.append(f"{worker.name}: {error!r:.300}")

    looker = threading.Thread(target=look)
    looker.start()
    try:
        yield
    finally:
        over.set()
        looker.join()
    assert wrong == []
    assert [worker.name for worker in workers if not worker.is_alive] == []


def heal(system: System) -> None:
    """All servers are quick, every living worker becomes ready by itself."""
    for gpu in system.gpus:
        if gpu.process.is_alive:
            gpu.heal()
    system.wait_ready(system.living(""))


def assert_all_made_once(system: System, orders: Sequence[Order], within: float = 90, swallowed: int = 0) -> None:
    """After the outage: every order is completed, and exactly one provider job was made for each.

    swallowed -- so many POSTs may have vanished without a word, and sending one again is counted as a possible double
    """
    heal(system)
    system.await_status("completed", *orders, within=within)
    assert set(jobs_of(system, orders).values()) == {1}
    assert possible_doubles(system, orders) <= swallowed


def attempts_beyond_one(system: System, orders: Sequence[Order]) -> int:
    """How many attempts the orders took beyond one each, where a server lost or broke jobs."""
    return len(attempts_of(system, orders)) - len(orders)


def jobs_of(system: System, orders: Sequence[Order]) -> dict[object, int]:
    """Provider jobs that were made, by task; the ones that their server forgot in a restart are none."""
    runs = [run for gpu in system.gpus for run in gpu.executions]
    accepted = collections.Counter(run["prompt_id"] for run in runs if run["outcome"] != "lost")
    jobs: dict[object, int] = {order.task_id: 0 for order in orders}
    for attempt in attempts_of(system, orders):
        jobs[attempt.task_id] += accepted[attempt.job_key]
    return jobs


def attempts_of(system: System, orders: Sequence[Order]) -> list[object]:
    return system.sql(
        "select task_id, cast(job_key as text) as job_key from attempts where task_id = any(cast(:ids as uuid[]))",
        ids=[str(order.task_id) for order in orders],
    )


def possible_doubles(system: System, orders: Sequence[Order]) -> int:
    """How often a worker met one of the two cases in which a job may have been made twice."""
    ids = {str(order.task_id) for order in orders}
    return sum(line["task_id"] in ids for worker in system.workers for line in worker.said("possible double"))
