"""The arguments that keep messages, as measured on RabbitMQ 3.10 and 4.0."""

import pytest

from shared.broker.topology import (
    DEAD_DELIVERY_LIMIT,
    DELIVERY_LIMIT,
    ReservedPool,
    buries_to,
    check_queue,
    dead_queue,
    stage_of,
    submit_queue,
    topology,
)
from shared.domain.task import Stage

TOPOLOGY = topology(["comfyui", "fal"])
QUEUES = {queue.name: queue for queue in TOPOLOGY.queues}
DEAD = ["orders.dead", "submit.dead", "check.dead"]
WORK = ["orders", "submit.comfyui", "check.comfyui", "submit.fal", "check.fal"]


def test_every_step_has_its_dead_queue_and_every_pool_its_own_work_queues() -> None:
    assert sorted(QUEUES) == sorted(DEAD + WORK)


@pytest.mark.parametrize("name", WORK)
def test_the_broker_moves_what_was_delivered_too_often_to_the_dead_queue_and_drops_nothing(name: str) -> None:
    """Without any one of strategy, exchange and reject-publish it would be lost when the dead queue is missing."""
    arguments = QUEUES[name].arguments
    assert arguments == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 20,
        "x-overflow": "reject-publish",
        "x-dead-letter-strategy": "at-least-once",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": buries_to(name),
    }


@pytest.mark.parametrize("name", DEAD)
def test_a_dead_queue_is_the_end_of_the_way(name: str) -> None:
    """A limit of its own: without one, RabbitMQ 4 throws a letter away at the 21st look."""
    assert QUEUES[name].arguments == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 1000,
        "x-overflow": "reject-publish",
    }
    assert buries_to(name) is None


def test_dead_queues_are_declared_before_what_is_moved_into_them() -> None:
    names = [queue.name for queue in TOPOLOGY.queues]
    for name in WORK:
        assert names.index(str(buries_to(name))) < names.index(name)


def test_only_orders_come_through_an_exchange() -> None:
    assert [(exchange.name, exchange.type) for exchange in TOPOLOGY.exchanges] == [
        ("orders", "topic"),
        ("events", "topic"),
    ]
    assert {queue.name: queue.binding for queue in TOPOLOGY.queues if queue.binding} == {
        "orders": ("orders", "order.placed")
    }


def test_a_message_survives_more_restarts_than_a_deploy_makes() -> None:
    """Each restart costs everything prefetched a delivery; the last allowed one still reaches a handler."""
    assert DELIVERY_LIMIT >= 20
    assert DEAD_DELIVERY_LIMIT >= 10 * DELIVERY_LIMIT


@pytest.mark.parametrize(
    ("queue", "stage", "dead"),
    [
        ("orders", Stage.ORDERS, "orders.dead"),
        (submit_queue("comfyui"), Stage.SUBMIT, "submit.dead"),
        (check_queue("fal"), Stage.CHECK, "check.dead"),
    ],
)
def test_a_queue_names_its_step(queue: str, stage: Stage, dead: str) -> None:
    assert stage_of(queue) is stage_of(dead) is stage
    assert buries_to(queue) == dead == dead_queue(stage)


def test_no_pool_can_take_the_name_of_a_dead_queue() -> None:
    with pytest.raises(ReservedPool, match="'dead'"):
        topology(["comfyui", "dead"])
