"""The database crashes in the middle of commits, loses their answers, ends single connections."""

import random
import time
from collections.abc import Iterator

import pytest

from deploy.local import Stack
from shared.domain.messages import Order
from tests.e2e.outage import SETTINGS, assert_all_made_once, await_unready, nobody_dies, post
from tests.e2e.system import System, an_order, some_orders
from tests.proxy import FaultProxy
from tests.servers import new_database, new_vhost
from tests.waiting import eventually


@pytest.fixture(scope="module")
def way(_module_stack: Stack) -> Iterator[FaultProxy]:
    """All connections of the workers to the database lead through it."""
    proxy = FaultProxy(int(_module_stack.database_url.rpartition(":")[2].partition("/")[0]))
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def system(_module_stack: Stack, way: FaultProxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Two workers of each kind and a producer."""
    database = new_database(_module_stack)
    system = System(
        tmp_path_factory.mktemp("system"),
        database,
        _module_stack.broker.url_of(new_vhost(_module_stack)),
        gpus=2,
        settings={**SETTINGS, "DATABASE_URL": way.url(database)},
    )
    try:
        system.start(submitters=2, pollers=2)
        system.add("producer")
        yield system
    finally:
        system.stop()


def workers_with_database(system: System) -> list[object]:
    return [worker for worker in system.living("") if not worker.name.startswith("producer")]


def test_a_database_that_crashes_in_mid_commit_again_and_again_loses_nothing_and_doubles_nothing(
    system: System, private_stack: Stack
) -> None:
    """Under load: commits whose outcome nobody was told are looked up and not repeated blindly."""
    orders = some_orders(100)
    taken = an_order()
    with nobody_dies(system):
        system.place(*orders, publishers=4)
        for crash in range(3):
            done = 20 * (crash + 1)
            eventually(lambda d=done: system.statuses(orders).get("completed", 0) >= d, within=60, what="it runs")  # type: ignore[misc]
            private_stack.database.stop(immediate=True)
            if crash == 0:
                await_unready(workers_with_database(system), "database")
                assert post(system, taken) == 202
            private_stack.database.start()
        assert system.statuses(orders).get("completed", 0) < len(orders)
        assert_all_made_once(system, [*orders, taken])


def test_commits_whose_answer_is_lost_are_looked_up_and_not_made_twice(system: System, way: FaultProxy) -> None:
    """Every eighth commit works, and its worker is told that the connection is gone.

    Rows that were taken that way wait for the end of their lease, since nobody knows that they are theirs.
    """
    orders = some_orders(40)
    with nobody_dies(system):
        way.lose_answers(b"COMMIT", every=8)
        before = way.lost_answers
        system.place(*orders, publishers=4)
        system.await_status("completed", *orders, within=180)
        lost = way.lost_answers - before
        way.heal()
        assert lost >= 15
        assert_all_made_once(system, orders)


def test_single_backends_of_the_database_killed_in_mid_run_cost_nothing(system: System, orders: list[Order]) -> None:
    """pg_terminate_backend, as an administrator or a failing pooler does it: forty, one after the other."""
    killed = 0
    with nobody_dies(system):
        for gpu in system.gpus:
            gpu.faults(seconds_per_image=0.3)
        ends = time.monotonic() + 60
        while killed < 40 and time.monotonic() < ends:
            victims = system.sql(
                "select pid from pg_stat_activity where application_name = 'darkroom'"
                " and datname = current_database() and pid <> pg_backend_pid()"
                " and query <> ''"  # of one that is only connecting, libpq prints the reason itself, to standard error
            )
            if victims:
                killed += len(system.sql("select pg_terminate_backend(:pid)", pid=random.choice(victims).pid))
            time.sleep(0.05)
        assert killed == 40
        assert system.statuses(orders).get("completed", 0) < len(orders)
        assert_all_made_once(system, orders)
