"""Connections that go, queues that vanish, callbacks that fail: the process goes on, and no delivery pays for it."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from pika.exceptions import ChannelClosedByBroker

from deploy.local import Stack
from shared.broker import connection
from shared.broker.broker import Broker
from shared.domain.messages import Delivery
from shared.domain.outcome import Done, Outcome
from tests.integration.broker_lab import BrokerLab, a_message, body_of
from tests.waiting import eventually


@pytest.fixture
def lab(amqp_url: str) -> Iterator[BrokerLab]:
    lab = BrokerLab(amqp_url)
    yield lab
    lab.close()


class Handler:
    """Done with everything, and remembers it."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.redelivered: list[Any] = []

    def __call__(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        self.seen += [body_of(delivery) for delivery in deliveries]
        self.redelivered += [body_of(delivery) for delivery in deliveries if delivery.redelivered]
        return [Done() for _ in deliveries]


def reconnects(broker: Broker) -> tuple[int, int]:
    assert broker.consumer is not None
    return broker.publisher._link.reconnects, broker.consumer._link.reconnects


def idle(broker: Broker) -> bool:
    return broker.consumer is not None and broker.consumer.in_hand == 0


@pytest.mark.parametrize("lived", [(60.0, [1, 2, 3]), (0.0, [1, 1, 1])], ids=["too short", "long enough"])
def test_connections_that_end_soon_are_made_again_ever_more_slowly(
    lab: BrokerLab,
    stack: Stack,
    vhost: str,
    monkeypatch: pytest.MonkeyPatch,
    lived: tuple[float, list[int]],
) -> None:
    sound_seconds, failures = lived
    monkeypatch.setattr(connection, "_SOUND_SECONDS", sound_seconds)
    broker = lab.broker()
    link = broker.publisher._link
    found = []
    for number in range(3):
        stack.broker.ctl("close_all_connections", "--vhost", vhost, "a test")
        eventually(lambda seen=number: link.reconnects == seen + 1, within=10, what="lost")  # type: ignore[misc]
        found.append(link._failures)
        eventually(lambda: not broker.problems, within=20, what="connected again")

    assert found == failures


def test_after_a_failed_callback_both_connections_are_made_again(lab: BrokerLab) -> None:
    ticks: list[int] = []

    def tick() -> None:
        ticks.append(1)
        if len(ticks) == 3:
            raise ValueError("a bug in the tick")

    handler = Handler()
    broker = lab.broker(handler, tick=tick)

    eventually(lambda: reconnects(broker) == (1, 1) and not broker.problems, within=20)

    lab.put(1)
    broker.publish([a_message(2)]).result(10)
    eventually(lambda: set(handler.seen) == {1, 2} and idle(broker), within=10)
    eventually(lambda: len(ticks) > 4, within=10, what="ticks again")
    assert reconnects(broker) == (1, 1)


def test_a_connection_whose_opening_fails_is_opened_again(lab: BrokerLab, monkeypatch: pytest.MonkeyPatch) -> None:
    class FailsTwice(connection.Connection):
        tries = 0

        def __init__(self, *args: Any, **options: Any) -> None:
            FailsTwice.tries += 1
            if FailsTwice.tries <= 2:
                raise ValueError("a bug")
            super().__init__(*args, **options)

    monkeypatch.setattr(connection, "Connection", FailsTwice)

    handler = Handler()
    lab.broker(handler).publish([a_message(1)]).result(10)

    eventually(lambda: handler.seen == [1], within=10)
    assert FailsTwice.tries == 4


def test_a_queue_deleted_while_it_was_paused_is_declared_and_consumed_again(lab: BrokerLab) -> None:
    handler = Handler()
    broker = lab.broker(handler)
    assert broker.consumer is not None
    broker.consumer.pause("orders")
    eventually(lambda: broker.consumer._active["orders"].consumer_tag is None, within=5)  # type: ignore[union-attr]
    lab.delete("orders")

    broker.consumer.resume("orders")

    eventually(lambda: reconnects(broker)[1] == 1 and not broker.problems, within=20)
    lab.put(1)
    eventually(lambda: handler.seen == [1] and idle(broker), within=10)


def test_a_dead_queue_deleted_by_an_operator_is_declared_again_for_the_next_letter(lab: BrokerLab) -> None:
    def handler(_: Sequence[Delivery]) -> list[Outcome]:
        raise ValueError("a bug")

    broker = lab.broker(handler)
    lab.delete("orders.dead")

    lab.put(1)

    eventually(lambda: waiting(lab, "orders.dead") == 1, within=20)
    eventually(lambda: idle(broker) and not broker.problems, within=10)
    assert [body for _, body in lab.taken("orders.dead")] == [1]


def waiting(lab: BrokerLab, queue: str) -> int:
    try:
        return lab.depth(queue)
    except ChannelClosedByBroker:
        return 0  # it is not declared again yet


def test_all_queues_deleted_again_and_again_come_back_each_time(lab: BrokerLab) -> None:
    handler = Handler()
    broker = lab.broker(handler)
    for number in range(3):
        for queue in ("orders", "orders.dead", "submit.comfyui", "check.comfyui"):
            lab.delete(queue)
        eventually(lambda seen=number: reconnects(broker)[1] > seen and not broker.problems, within=30)  # type: ignore[misc]
        broker.publish([a_message(number)]).result(20)
        eventually(lambda seen=number: seen in handler.seen and idle(broker), within=10)  # type: ignore[misc]

    assert handler.seen == [0, 1, 2]
