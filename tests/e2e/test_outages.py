"""The broker or the database dies in mid-run and comes back: nobody exits, nothing is lost, nothing runs twice.

tests/slow/outages has them shut down in good order, and whatever else goes away.
"""

import time
from collections.abc import Iterator

import pytest

from deploy.local import Stack
from shared.domain.messages import Order
from tests.e2e.outage import SETTINGS, SETTLED_SECONDS, assert_all_made_once, is_alive_and_unready, post, under_way
from tests.e2e.system import System, an_order
from tests.servers import new_database, new_vhost
from tests.waiting import eventually


@pytest.fixture(scope="module")
def system(_module_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Two workers of each kind and a producer, on servers that the tests stop and kill."""
    system = System(
        tmp_path_factory.mktemp("system"),
        new_database(_module_stack),
        _module_stack.broker.url_of(new_vhost(_module_stack)),
        gpus=2,
        settings=SETTINGS,
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
    return under_way(system)


def deploy(system: System) -> None:
    """One worker of each kind is asked to leave, and another one is started."""
    services = ("submitter", "poller", "ops")
    leaving = [system.living(service)[0] for service in services]
    for worker in leaving:
        worker.terminate()
    for service in services:
        system.add(service, wait=False)
    assert [worker.ended() for worker in leaving] == [0, 0, 0]


def test_workers_replaced_while_the_killed_broker_is_away_lose_nothing_and_double_nothing(
    system: System, orders: list[Order], private_stack: Stack
) -> None:
    private_stack.broker.kill()
    refused = an_order()
    assert post(system, refused) == 503
    eventually(
        lambda: all(map(is_alive_and_unready, system.living(""))), within=10, what="all say that they cannot work"
    )
    deploy(system)
    assert system.statuses(orders).get("completed", 0) < len(orders)

    private_stack.broker.start()
    system.wait_ready(system.living(""))
    assert post(system, refused) == 202
    assert_all_made_once(system, [*orders, refused])


def test_workers_replaced_while_the_crashed_database_is_away_lose_nothing_and_double_nothing(
    system: System, orders: list[Order], private_stack: Stack
) -> None:
    private_stack.database.stop(immediate=True)
    taken = an_order()
    assert post(system, taken) == 202  # the broker keeps it
    deploy(system)

    private_stack.database.start()
    assert system.statuses(orders).get("completed", 0) < len(orders)
    assert_all_made_once(system, [*orders, taken])
