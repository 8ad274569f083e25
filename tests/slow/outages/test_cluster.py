"""Three RabbitMQ nodes: the one that leads the queues dies twice while thousands of orders are under way."""

from collections.abc import Iterator

import pytest

from deploy.local import Stack
from shared.broker.topology import submit_queue
from shared.domain.messages import order_placed
from tests.cluster import Cluster, running_cluster
from tests.e2e import states
from tests.e2e.outage import SETTINGS, assert_all_made_once, heal, nobody_dies
from tests.e2e.system import System, some_orders
from tests.servers import new_database
from tests.waiting import eventually

ORDERS = 5000


@pytest.fixture(scope="module")
def cluster(_servers_end_with_the_run: None) -> Iterator[Cluster]:
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def system(stack: Stack, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    system = System(
        tmp_path_factory.mktemp("system"),
        new_database(stack),
        cluster.urls,
        gpus=2,
        capacity=30,
        seconds_per_image=0.02,  # a hundred orders a second, so that both kills find work under way
        settings={**SETTINGS, **states.PATIENT, "PREFETCH_INTAKE": 200, "PREFETCH_COMFYUI": 30},
    )
    try:
        yield system
    finally:
        system.stop()


@pytest.mark.timeout(900)
def test_the_leader_of_the_queues_killed_twice_during_thousands_of_orders_loses_nothing_and_doubles_nothing(
    system: System, cluster: Cluster
) -> None:
    system.start(submitters=2, pollers=2)
    orders = some_orders(ORDERS)

    def completed() -> int:
        return int(system.sql("select count(*) as n from tasks where status = 'completed'")[0].n)

    with nobody_dies(system):
        third = ORDERS // 3
        system.mail.publish_through_outages(*(order_placed(order) for order in orders[:third]))
        for kill in (1, 2):
            eventually(lambda k=kill: completed() >= k * third // 2, within=240, every=0.5, what="it runs")  # type: ignore[misc]
            leader = cluster.leader_of(submit_queue("comfyui"))
            leader.kill()
            at_kill = completed()
            assert at_kill < ORDERS - third // 2  # in mid-run
            part = orders[kill * third : (kill + 1) * third] if kill == 1 else orders[kill * third :]
            system.mail.publish_through_outages(*(order_placed(order) for order in part))
            # More than was in hand. At times the broker refuses what comes over channels older than the new leader,
            # which are left after 10 s.
            goal = at_kill + third // 4
            eventually(lambda g=goal: completed() >= g, within=120, every=0.2, what="it goes on without the node")  # type: ignore[misc]
            heal(system)
            leader.start()
            leader.ctl("await_startup")
        eventually(lambda: completed() == ORDERS, within=300, every=1, what="all are completed")
        assert_all_made_once(system, orders)
