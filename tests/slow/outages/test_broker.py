"""The broker dies, runs out of memory, loses a queue, loses its disk."""

import shutil

import requests

from deploy.local import Stack
from shared.broker.topology import check_queue, submit_queue
from shared.domain.messages import Order
from tests.e2e import states
from tests.e2e.outage import (
    assert_all_made_once,
    attempts_beyond_one,
    await_unready,
    heal,
    nobody_dies,
    port_of,
    post,
)
from tests.e2e.system import System, an_order, some_orders
from tests.servers import memory_alarm
from tests.waiting import eventually


def test_a_broker_killed_and_started_again_in_mid_run_loses_nothing_and_doubles_nothing(
    system: System, orders: list[Order], private_stack: Stack
) -> None:
    refused = an_order()
    with nobody_dies(system):
        private_stack.broker.kill()
        assert post(system, refused) == 503
        await_unready(system.living(""), "broker")
        assert system.statuses(orders).get("completed", 0) < len(orders)

        private_stack.broker.start()
        heal(system)
        assert post(system, refused) == 202
        assert_all_made_once(system, [*orders, refused])


def test_a_memory_alarm_blocks_publishers_who_say_so_and_what_waits_leaves_afterwards(
    system: System, orders: list[Order], private_stack: Stack
) -> None:
    refused = an_order()
    publish = [worker for worker in system.living("") if worker.name.startswith(("producer", "poller"))]
    with nobody_dies(system):
        with memory_alarm(private_stack):
            assert post(system, refused) == 503
            await_unready(publish, "broker")  # a submitter is blocked as soon as it has anything to publish
            assert {worker.unready()["broker"] for worker in publish} == {"blocked"}
            [collector] = system.living("ops")
            assert collector.is_ready()  # it only consumes, and goes on
            made = sum(len(gpu.executions) for gpu in system.gpus)
            assert system.statuses(orders).get("completed", 0) < len(orders)
        heal(system)
        assert post(system, refused) == 202
        assert made >= 4
        assert_all_made_once(system, [*orders, refused])


def test_queues_deleted_under_their_consumers_are_declared_again_and_permits_and_checks_are_made_again(
    system: System, orders: list[Order]
) -> None:
    """All orders have their rows. What had not been claimed would be lost with the queue: see the wiped broker."""
    eventually(lambda: len(system.rows(orders)) == len(orders), within=30, what="all are claimed")
    late = an_order()
    with nobody_dies(system):
        with system.mail.channel() as channel:
            for queue in ("orders", submit_queue("comfyui"), check_queue("comfyui")):
                channel.queue_delete(queue)
        eventually(lambda: post(system, late) == 202, within=30, what="orders are taken again")
        eventually(lambda: any(w.said("broker connection given up") for w in system.workers), within=20)
        assert_all_made_once(system, [*orders, late])


def test_a_broker_that_lost_its_disk_loses_what_nobody_had_claimed_and_nothing_else(
    system: System, private_stack: Stack
) -> None:
    """Orders with a row go on from the table. The others are gone with the broker, although it had confirmed them:
    nothing but the upstream system knows of them. It is told 404, sends the same order again, and gets one picture.
    """
    for gpu in system.gpus:
        gpu.faults(seconds_per_image=states.FOREVER)
    claimed, unclaimed = some_orders(20), some_orders(5)
    system.place(*claimed)
    eventually(lambda: len(system.rows(claimed)) == len(claimed), within=30, what="all are claimed")
    eventually(lambda: system.statuses(claimed).get("processing", 0) == 4, within=30, what="all slots are taken")
    for submitter in system.living("submitter"):
        submitter.terminate()
        submitter.ended()
    assert [post(system, order) for order in unclaimed] == [202] * len(unclaimed)
    system.mail.events()  # what upstream has not read yet would be lost with its queue

    with nobody_dies(system):
        private_stack.broker.kill()
        shutil.rmtree(private_stack.broker.folder / "mnesia")
        private_stack.broker.start()
        system.mail.declare()
        system.add("submitter")
        heal(system)
        for gpu in system.gpus:
            gpu.restart()  # ends the endless jobs: one attempt each of the four is lost with them
        assert_all_made_once(system, claimed)
        assert attempts_beyond_one(system, claimed) == 4

        url = f"http://127.0.0.1:{port_of(system.living('producer')[0])}/v1/orders"
        assert system.rows(unclaimed) == []
        assert {requests.get(f"{url}/{order.task_id}", timeout=10).status_code for order in unclaimed} == {404}
        assert [post(system, order) for order in unclaimed] == [202] * len(unclaimed)
        assert_all_made_once(system, unclaimed)
