"""Messages made to hurt: what stands in them stops neither the connection nor their neighbours."""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pika
import pytest

from deploy.local import Stack
from shared.broker.broker import Broker
from shared.domain.errors import Outage
from shared.domain.messages import Delivery, Message
from shared.domain.outcome import DeadLetter, Done, Outcome
from shared.domain.task import Reason, Stage, task_id_for
from shared.observe.trace import new_trace_id, read_trace_id, traceparent_of
from tests.hostile import UNREADABLE, Unreadable
from tests.integration.broker_lab import BrokerLab, a_message, body_of
from tests.waiting import eventually


@pytest.fixture
def lab(amqp_url: str) -> Iterator[BrokerLab]:
    lab = BrokerLab(amqp_url)
    yield lab
    lab.close()


def leave_behind(lab: BrokerLab, *bodies: Any) -> None:
    """Messages that somebody had in hand and never acked."""
    with lab.channel() as channel:
        channel.basic_qos(prefetch_count=len(bodies))
        lab.put(*bodies)
        taken = channel.consume("orders", inactivity_timeout=10)
        for _ in bodies:
            next(taken)
    eventually(lambda: lab.depth() == len(bodies), within=10)


def test_what_another_process_left_behind_is_taken_one_by_one_and_then_all_there_is(lab: BrokerLab) -> None:
    lab.broker()  # declares the queues
    leave_behind(lab, 1, 2, 3)
    lab.put(4, 5, 6)
    in_hand: list[int] = []
    seen: list[Any] = []

    def handler(deliveries: Sequence[Delivery]) -> list[Outcome]:
        seen.extend(body_of(delivery) for delivery in deliveries)
        if len(seen) <= 3:
            in_hand.append(6 - (len(seen) - 1) - lab.depth())
        elif len(seen) < 6:
            in_hand.append(eventually(lambda: 3 if lab.depth() == 0 else 0, within=10))
        return [Done() for _ in deliveries]

    broker = lab.broker(handler, batch=1, ready=False)

    eventually(lambda: len(seen) == 6 and idle(broker), within=20)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert in_hand[:3] == [1, 1, 1]
    assert lab.depth() == 0
    assert broker.problems == []


class Keeper:
    """Done with everything, and remembers it."""

    def __init__(self) -> None:
        self.seen: list[Delivery] = []

    def __call__(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        self.seen += deliveries
        return [Done() for _ in deliveries]


def reconnects(broker: Broker) -> int:
    return broker.publisher._link.reconnects + (broker.consumer._link.reconnects if broker.consumer else 0)


def idle(broker: Broker) -> bool:
    return broker.consumer is not None and broker.consumer.in_hand == 0


@pytest.mark.parametrize("queue", ["orders", "orders.dead"])
@pytest.mark.parametrize("value", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_headers_that_cannot_be_decoded_are_left_out_and_nothing_else_is(
    lab: BrokerLab, queue: str, value: bytes
) -> None:
    lab.broker()  # declares the queues
    lab.put(1, queue=queue)
    with lab.channel() as channel:
        channel.basic_publish("", queue, b"2", Unreadable(value))
    lab.put(3, queue=queue)
    keeper = Keeper()

    broker = lab.broker(keeper, queue=queue)

    eventually(lambda: len(keeper.seen) == 3 and idle(broker), within=10)
    assert [body_of(delivery) for delivery in keeper.seen] == [1, 2, 3]
    hurt = keeper.seen[1]
    assert (hurt.type, hurt.message_id, hurt.correlation_id) == ("t", "m", "c")
    assert "x" not in hurt.headers
    assert reconnects(broker) == 0
    assert not any(delivery.redelivered for delivery in keeper.seen)


def test_names_that_are_no_text_count_as_absent(lab: BrokerLab) -> None:
    keeper = Keeper()
    broker = lab.broker(keeper)
    with lab.channel() as channel:
        properties = pika.BasicProperties(type=b"\xff", message_id=b"\xfe", correlation_id=b"\xfd")
        channel.basic_publish("", "orders", b"1", properties)

    eventually(lambda: len(keeper.seen) == 1 and idle(broker), within=10)
    (delivery,) = keeper.seen
    assert (delivery.type, delivery.message_id, delivery.correlation_id) == (None, None, None)


def test_a_letter_takes_along_the_trace_and_no_other_header(lab: BrokerLab) -> None:
    trace_id = new_trace_id()
    letter = DeadLetter(reason=Reason.INVALID_MESSAGE, detail="no order", stage=Stage.ORDERS)
    broker = lab.broker(lambda deliveries: [letter for _ in deliveries])

    broker.publish(
        [
            a_message(1, headers={"traceparent": traceparent_of(trace_id), "mine": "x"}),
            a_message(2, headers={"traceparent": "0" * 130_000}),
            a_message(3, headers={"traceparent": ["x"]}),
        ]
    ).result(10)

    eventually(lambda: lab.depth("orders.dead") == 3 and idle(broker), within=10)
    letters = {
        body: {name: value for name, value in properties.headers.items() if not name.startswith("x-")}
        for properties, body in lab.taken("orders.dead")
    }
    assert read_trace_id(letters[1].pop("traceparent")) == trace_id
    ours = {"reason", "stage", "detail", "exchange", "routing_key", "queue", "deliveries"}
    assert set(letters[1]) == set(letters[2]) == set(letters[3]) == ours
    assert reconnects(broker) == 0


def test_a_follow_up_that_ends_every_connection_buries_its_delivery(lab: BrokerLab) -> None:
    def follow_up(delivery: Delivery) -> Message:
        headers = {"x": "y" * 200_000} if body_of(delivery) == "bad" else {}
        return a_message(body_of(delivery), to="submit.comfyui", headers=headers)

    def handler(deliveries: Sequence[Delivery]) -> list[Outcome]:
        return [Done(then=[follow_up(delivery)]) for delivery in deliveries]

    broker = lab.broker(handler)
    lab.put(1, "bad", 2)

    eventually(lambda: lab.depth("orders.dead") == 1 and idle(broker), within=60)
    ((properties, body),) = lab.taken("orders.dead")
    assert (body, properties.headers["reason"]) == ("bad", "bug")
    assert "5 connections in a row" in properties.headers["detail"]
    assert {body for _, body in lab.taken("submit.comfyui")} == {1, 2}


def test_a_letter_that_cannot_be_sent_is_replaced_by_a_bare_one(lab: BrokerLab) -> None:
    """Its attempt fits into no integer of AMQP."""
    letter = DeadLetter(reason=Reason.BUG, detail="", stage=Stage.ORDERS, task_id=task_id_for("k"), attempt=2**70)
    broker = lab.broker(lambda deliveries: [letter for _ in deliveries])

    lab.put("x")

    eventually(lambda: lab.depth("orders.dead") == 1 and idle(broker), within=10)
    ((properties, body),) = lab.taken("orders.dead")
    assert (body, properties.type, properties.correlation_id) == ("x", "dead.letter.v1", None)
    assert (properties.headers["reason"], properties.headers["stage"]) == ("bug", "orders")
    assert "Unpublishable" in properties.headers["detail"]
    assert broker.problems == []


class Collector:
    """Records letters, but one of them meets a bug."""

    def __init__(self) -> None:
        self.recorded: list[Any] = []
        self.tries = 0

    def __call__(self, deliveries: Sequence[Delivery]) -> list[Outcome]:
        if any(body_of(delivery) == "poison" for delivery in deliveries):
            self.tries += len(deliveries) == 1
            raise ValueError("a letter nobody thought of")
        self.recorded += [body_of(delivery) for delivery in deliveries]
        return [Done() for _ in deliveries]


def test_a_bug_at_a_letter_holds_it_and_stops_its_queue_at_once(
    lab: BrokerLab, stack: Stack, vhost: str, caplog: pytest.LogCaptureFixture
) -> None:
    lab.broker()
    lab.put(1, "poison", 2, queue="orders.dead")
    collector = Collector()
    broker = lab.broker(collector, queue="orders.dead", ready=False)

    eventually(lambda: broker.problems == ["orders.dead: stopped at a delivery that cannot be buried"], within=20)

    lab.put(3, queue="orders.dead")
    eventually(lambda: lab.depth("orders.dead") == 1 and idle(broker), within=10)
    counts = eventually(lambda: counted(stack, vhost, unacked=1), within=10)
    assert counts == {"messages_ready": 1, "messages_unacknowledged": 1}
    assert (collector.recorded, collector.tries) == ([1, 2], 3)
    (error,) = [record for record in caplog.records if record.message == "delivery cannot be buried"]
    assert "a letter nobody thought of" in error.why  # type: ignore[attr-defined]

    assert broker.stop(5)
    lab._started.remove(broker)
    assert eventually(lambda: lab.depth("orders.dead") == 2, within=10)


def counted(stack: Stack, vhost: str, *, unacked: int) -> dict[str, Any] | None:
    columns = ("name", "messages_ready", "messages_unacknowledged")
    rows = {row.pop("name"): row for row in stack.broker.queues(*columns, vhost=vhost)}
    return rows["orders.dead"] if int(rows["orders.dead"]["messages_unacknowledged"]) == unacked else None


def test_an_outage_of_the_collector_is_no_bug(lab: BrokerLab) -> None:
    away = threading.Event()
    keeper = Keeper()

    def collector(deliveries: Sequence[Delivery]) -> list[Outcome]:
        if not away.is_set():
            raise Outage("gone")
        return keeper(deliveries)

    broker = lab.broker(collector, queue="orders.dead")
    lab.put(1, queue="orders.dead")
    eventually(lambda: not idle(broker), within=10)
    away.set()

    eventually(lambda: len(keeper.seen) == 1 and idle(broker), within=20)
    assert broker.problems == []


def test_the_publisher_names_what_it_gave_up(lab: BrokerLab, caplog: pytest.LogCaptureFixture) -> None:
    message: Message = a_message(exchange="nobody.declared.it", to="order.lost")

    assert lab.broker().publish([message]).exception(60) is not None

    (error,) = [record for record in caplog.records if record.message == "message given up"]
    assert error.routing_key == "order.lost"  # type: ignore[attr-defined]
