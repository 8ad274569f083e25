"""The broker and the database are shut down in good order in mid-run, and started again."""

from deploy.local import Stack
from shared.domain.messages import Order
from tests.e2e.outage import (
    assert_all_made_once,
    await_unready,
    nobody_dies,
    post,
)
from tests.e2e.system import System, an_order


def test_the_broker_restarted_in_mid_run_loses_nothing_and_doubles_nothing(
    system: System, orders: list[Order], private_stack: Stack
) -> None:
    refused = an_order()
    with nobody_dies(system):
        private_stack.broker.stop()
        assert post(system, refused) == 503
        await_unready(system.living(""), "broker")
        assert system.statuses(orders).get("completed", 0) < len(orders)

        private_stack.broker.start()
        system.wait_ready(system.living(""))
        assert post(system, refused) == 202
        assert_all_made_once(system, [*orders, refused])


def test_the_database_restarted_in_mid_run_loses_nothing_and_doubles_nothing(
    system: System, orders: list[Order], private_stack: Stack
) -> None:
    taken = an_order()
    with nobody_dies(system):
        private_stack.database.stop()
        assert post(system, taken) == 202  # the broker keeps it

        private_stack.database.start()
        assert system.statuses(orders).get("completed", 0) < len(orders)
        assert_all_made_once(system, [*orders, taken])
