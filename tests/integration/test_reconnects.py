"""Connections that go, queues that vanish, callbacks that fail: the process goes on, and no delivery pays for it."""

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker

from deploy.local import Stack
from shared.broker import connection, listening, publisher, wire
from shared.broker.broker import Broker
from shared.broker.deliveries import Active
from shared.broker.settling import Settling
from shared.domain.errors import DatabaseAway
from shared.domain.messages import Delivery
from shared.domain.outcome import Done, Outcome
from tests.integration.broker_lab import BrokerLab, a_message, body_of
from tests.proxy import FaultProxy
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


def has_its_whole_prefetch(active: Active) -> bool:
    return active.consumer_tag is not None and not active.cancelling and not active.one_by_one


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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_process_one_of_whose_threads_has_died_ticks_no_more(lab: BrokerLab) -> None:
    """The watchdog ends it then: nobody would handle what that thread was there for."""
    ticks: list[int] = []

    def handler(_: Sequence[Delivery]) -> list[Outcome]:
        raise SystemExit

    broker = lab.broker(handler, tick=lambda: ticks.append(1))
    eventually(lambda: len(ticks) > 1, within=10)
    assert broker.consumer is not None

    lab.put(1)

    eventually(lambda: not broker.consumer.is_whole, within=10)  # type: ignore[union-attr]
    turns: list[int] = []
    turn, before = broker._turn, len(ticks)
    broker._turn = lambda: (turns.append(1), turn())[1]  # type: ignore[method-assign]
    eventually(lambda: len(turns) > 2, within=10)
    assert len(ticks) <= before + 1


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


def test_what_a_failed_callback_left_undone_comes_again(lab: BrokerLab, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = Settling._carry_out, []

    def failing_once(self: Settling, settled: Any) -> None:
        calls.append(settled)
        if len(calls) == 1:
            raise ValueError("a bug")
        original(self, settled)

    monkeypatch.setattr(Settling, "_carry_out", failing_once)
    handler = Handler()
    broker = lab.broker(handler)

    lab.put(1)

    eventually(lambda: handler.seen == [1, 1] and handler.redelivered == [1], within=20)
    eventually(lambda: not broker.problems, within=10)
    assert lab.depth() == 0


def test_deliveries_on_their_way_when_their_queue_is_paused_are_handled_and_not_sent_back(lab: BrokerLab) -> None:
    """pika alone rejects what arrives between a cancel and its answer, and the broker counts each rejection."""
    handler = Handler()
    broker = lab.broker(handler, prefetch=100)
    assert broker.consumer is not None
    consumer, on_the_wire = broker.consumer, threading.Event()
    lab.put(-1)  # from here on the whole prefetch is used
    active = consumer._active["orders"]
    eventually(lambda: has_its_whole_prefetch(active) and idle(broker), within=10, what="cancelled once")
    eventually(lambda: lab.consumers() == 1, within=10, what="consumed anew")

    def pause_before_anything_is_read() -> None:
        on_the_wire.wait(20)
        consumer._set_paused(consumer._active["orders"], paused=True)

    broker._io.run(pause_before_anything_is_read)
    lab.put(*range(50))
    eventually(lambda: lab.depth() == 0, within=10, what="all of them sent to the consumer")
    on_the_wire.set()

    eventually(lambda: len(handler.seen) == 51 and idle(broker), within=10)
    eventually(lambda: consumer._active["orders"].consumer_tag is None, within=10, what="cancelled")
    lab.put(50)
    consumer.resume("orders")
    eventually(lambda: handler.seen == list(range(-1, 51)) and idle(broker), within=10)
    assert handler.redelivered == []
    assert reconnects(broker) == (0, 0)


def test_what_a_braked_queue_gives_back_is_delivered_once_more_and_not_in_circles(lab: BrokerLab) -> None:
    def handler(_: Sequence[Delivery]) -> list[Outcome]:
        raise ValueError("a bug in every one")

    lab.broker()
    lab.put(*range(40))
    broker = lab.broker(handler, ready=False, brake_after=2, batch=1, prefetch=40)

    eventually(lambda: broker.problems == ["orders: stopped after 2 bugs in a row"], within=30)
    left = eventually(lambda: lab.depth() + lab.depth("orders.dead") == 40 and lab.depth(), within=20)

    assert left >= 37
    counts = [properties.headers["x-delivery-count"] for properties, _ in lab.taken()]
    assert counts == [1] * left


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


def test_an_outage_that_outlasts_connections_costs_what_is_in_hand_one_delivery(
    lab: BrokerLab, stack: Stack, vhost: str
) -> None:
    """The broker ends a channel on which nothing is acked for half an hour, and buries what came twenty times."""
    away, counts = threading.Event(), dict[Any, int]()
    away.set()

    def handler(deliveries: Sequence[Delivery]) -> list[Outcome]:
        if away.is_set():
            raise DatabaseAway("gone")
        counts.update({body_of(d): d.headers.get("x-delivery-count", 0) for d in deliveries})
        return [Done() for _ in deliveries]

    lab.broker()
    lab.put(1, 2, 3)
    broker = lab.broker(handler, ready=False, long_outage_seconds=0.3)
    eventually(lambda: broker.problems == ["orders: waits for the end of an outage"], within=20)
    for number in range(3):
        stack.broker.ctl("close_all_connections", "--vhost", vhost, "a test")
        eventually(lambda seen=number: reconnects(broker)[1] > seen and len(broker.problems) == 1, within=20)  # type: ignore[misc]
        assert eventually(lambda: lab.depth() == 3, within=10, what="all back in their queue")

    away.clear()

    eventually(lambda: set(counts) == {1, 2, 3} and not broker.problems and idle(broker), within=20)
    assert max(counts.values()) == 1
    assert (lab.depth(), lab.depth("orders.dead")) == (0, 0)


def test_while_nothing_can_be_published_for_long_nothing_more_is_taken(lab: BrokerLab) -> None:
    seen: list[Any] = []

    def handler(deliveries: Sequence[Delivery]) -> list[Outcome]:
        seen.extend(map(body_of, deliveries))
        return [Done(then=[a_message(to="submit.comfyui")]) for _ in deliveries]

    broker = lab.broker(handler, long_outage_seconds=0.3)
    broker._io.run(lambda: broker.publisher._set_blocked(blocked=True))
    eventually(lambda: lab.consumers() == 0, within=10, what="consuming no more")
    lab.put(1)
    assert (broker.problems, lab.depth()) == (["blocked"], 1)

    broker._io.run(lambda: broker.publisher._set_blocked(blocked=False))

    eventually(lambda: seen == [1] and idle(broker) and not broker.problems, within=10)


def test_a_consumer_that_the_broker_has_forgotten_is_made_again(lab: BrokerLab) -> None:
    handler = Handler()
    broker = lab.broker(handler)
    assert broker.consumer is not None
    active = broker.consumer._active["orders"]
    lab.put(1)
    eventually(lambda: handler.seen == [1] and has_its_whole_prefetch(active) and idle(broker), within=10)
    tag = active.consumer_tag
    broker._io.run(lambda: active.channel.basic_cancel(tag))  # type: ignore[union-attr]  # behind our own back
    eventually(lambda: lab.consumers() == 0, within=10)
    lab.put(2)
    assert lab.depth() == 1

    in_vain = [look(broker) for _ in range(4)]

    assert in_vain == [1, 2, 3, 0]
    eventually(lambda: handler.seen == [1, 2] and idle(broker) and not broker.problems, within=20)
    assert reconnects(broker) == (0, 1)


def test_a_consumer_with_nothing_to_do_or_much_in_hand_is_left_alone(lab: BrokerLab) -> None:
    handler, release = Handler(), threading.Event()

    def slow(deliveries: Sequence[Delivery]) -> list[Outcome]:
        release.wait(20)
        return handler(deliveries)

    broker = lab.broker(slow, prefetch=2, batch=1)
    assert broker.consumer is not None
    ((_, seen),) = broker.consumer._listening._seen
    for _ in range(5):
        look(broker)
        eventually(lambda: not seen.in_vain, within=10, what="told that there is nothing")
    lab.put(*range(5))
    eventually(lambda: broker.consumer.in_hand > 0, within=10)  # type: ignore[union-attr]
    assert [look(broker) for _ in range(5)] == [0] * 5
    release.set()

    eventually(lambda: sorted(handler.seen) == list(range(5)) and idle(broker), within=10)
    assert reconnects(broker) == (0, 0)


def look(broker: Broker) -> int:
    """Have the consumer look for messages that are kept back; how many looks in a row were in vain so far."""
    assert broker.consumer is not None
    listening, looked = broker.consumer._listening, threading.Event()
    broker._io.run(lambda: (listening.look(), looked.set()))  # type: ignore[func-returns-value]
    assert looked.wait(10)
    return listening._seen[0][1].in_vain


def test_a_queue_taken_up_while_its_channel_is_being_opened_has_one_consumer(lab: BrokerLab) -> None:
    handler = Handler()
    broker = lab.broker(handler, ready=False)
    assert broker.consumer is not None
    consumer = broker.consumer
    consumer.pause("orders")
    eventually(lambda: consumer._link.is_ready and lab.consumers() == 0, within=20)
    active = consumer._active["orders"]

    def twice() -> None:
        active.channel, active.paused = None, False
        consumer._open_channel(active)
        consumer._open_channel(active)

    broker._io.run(twice)
    eventually(lambda: not broker.problems, within=10)
    lab.put(1)
    eventually(lambda: handler.seen == [1] and has_its_whole_prefetch(active), within=10)
    consumer.pause("orders")

    eventually(lambda: lab.consumers() == 0, within=10)
    assert reconnects(broker) == (0, 0)


@pytest.mark.parametrize("step", ["declare", "channel"])
def test_connections_on_which_nothing_is_answered_are_made_again(
    lab: BrokerLab, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Not even the goodbye: it waits behind what was asked."""
    monkeypatch.setattr(listening, "_LOOK_SECONDS", 1.0)
    monkeypatch.setattr(publisher, "_SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(connection, "_GOODBYE_SECONDS", 0.3)
    deaf: set[object] = set()
    original = wire.Connection._send_method

    def sent(self: wire.Connection, channel_number: int, method: Any, content: Any = None) -> None:
        asked = (method.NAME, channel_number)
        if len(deaf) < 2 and asked == (("Exchange.Declare", 1) if step == "declare" else ("Channel.Open", 2)):
            deaf.add(self)
        if self not in deaf:
            original(self, channel_number, method, content)

    monkeypatch.setattr(wire.Connection, "_send_method", sent)
    handler = Handler()
    broker = lab.broker(handler)

    assert len(deaf) == 2
    assert min(reconnects(broker)) >= 1
    broker.publish([a_message(1)]).result(10)
    eventually(lambda: handler.seen == [1] and idle(broker), within=10)


def test_a_connection_that_is_given_up_and_says_no_goodbye_is_hung_up(
    lab: BrokerLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_GOODBYE_SECONDS", 0.3)
    way = FaultProxy(pika.URLParameters(lab.url).port)
    broker = lab.broker(urls=[way.url(lab.url)])
    way.half_open()
    began = time.monotonic()

    broker._io.run(lambda: broker.publisher._link.fail("a test"))

    eventually(lambda: broker.publisher._link.reconnects == 1 and not broker.problems, within=15)
    assert time.monotonic() - began < 3 * connection.HEARTBEAT_SECONDS / 2
    lab.close()
    way.close()
