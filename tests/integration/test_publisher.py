"""A message leaves until the broker has confirmed it and it was not sent back."""

from collections.abc import Iterator
from typing import Any

import pytest
from pika.adapters.select_connection import SelectConnection
from pika.exceptions import NackError

from deploy.local import Stack
from shared.broker import publisher
from shared.broker.publisher import Publisher
from shared.domain.errors import BrokerAway, Unpublishable
from shared.domain.messages import Message, order_placed
from tests.factories import an_order
from tests.integration.broker_lab import BrokerLab, a_message
from tests.servers import free_port
from tests.waiting import eventually


@pytest.fixture
def lab(amqp_url: str) -> Iterator[BrokerLab]:
    lab = BrokerLab(amqp_url)
    yield lab
    lab.close()


def test_many_messages_are_confirmed_at_once_and_keep_their_order(lab: BrokerLab) -> None:
    broker = lab.broker()

    broker.publish([a_message(number) for number in range(3000)]).result(30)

    assert [body for _, body in lab.taken()] == list(range(3000))


def test_messages_published_together_leave_in_one_write(lab: BrokerLab, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = lab.broker()
    writes: list[bytes] = []
    emit = SelectConnection._adapter_emit_data

    def emitted(self: SelectConnection, data: bytes) -> None:
        writes.append(data)
        emit(self, data)

    monkeypatch.setattr(SelectConnection, "_adapter_emit_data", emitted)

    broker.publish([a_message(n) for n in range(50)]).result(10)
    small = len(writes)
    broker.publish([a_message("x" * 10_000) for _ in range(50)]).result(10)

    assert small <= 2, "a heartbeat may come in between"
    assert max(map(len, writes)) < 80_000, "what a socket does not take at once is copied for each part"
    assert [body for _, body in lab.taken()] == [*range(50), *["x" * 10_000] * 50]


def test_every_message_is_persistent_and_says_what_it_is(lab: BrokerLab) -> None:
    broker = lab.broker()
    message = order_placed(an_order(idempotency_key="k"), traceparent="00-a-b-01")

    broker.publish([message]).result(10)

    ((properties, body),) = lab.taken()
    assert body == {"idempotency_key": "k", "pool": "comfyui", "workflow": "demo"}
    assert (properties.delivery_mode, properties.type) == (2, "order.placed.v1")
    assert (properties.message_id, properties.correlation_id) == (message.message_id, "k")
    assert properties.headers["traceparent"] == "00-a-b-01"


def test_nothing_to_publish_is_done_at_once(lab: BrokerLab) -> None:
    assert lab.broker(ready=False).publish([]).done()


def test_a_key_of_long_characters_can_be_published(lab: BrokerLab) -> None:
    """A short string of AMQP holds 255 bytes; 200 characters may be 800."""
    order = an_order(idempotency_key="鍵" * 200)

    lab.broker().publish([order_placed(order)]).result(10)

    ((properties, body),) = lab.taken()
    assert body["idempotency_key"] == order.idempotency_key
    assert properties.correlation_id == "鍵" * 85


def test_a_message_that_cannot_be_sent_fails_alone_and_shifts_no_confirm(lab: BrokerLab) -> None:
    broker = lab.broker()
    bad = broker.publish([a_message(message_id="x" * 300)])
    lab.delete("submit.comfyui")
    lost = broker.publish([a_message("lost", to="submit.comfyui")])
    good = broker.publish([a_message("good")])

    with pytest.raises(Unpublishable, match="ShortStringTooLong"):
        bad.result(10)
    good.result(10)
    lost.result(30)

    assert [body for _, body in lab.taken("submit.comfyui")] == ["lost"]


def test_what_callers_gave_up_in_an_outage_is_not_kept_until_its_end() -> None:
    lab = BrokerLab(f"amqp://127.0.0.1:{free_port()}/")
    broker = lab.broker(ready=False)
    wanted = broker.publish([a_message("wanted")])
    for _ in range(50):
        for given_up in [broker.publish([a_message(number) for number in range(100)]) for _ in range(2)]:
            given_up.cancel()

    eventually(lambda: len(broker.publisher._waiting) < 2500, within=10, what="given up and forgotten")

    assert not wanted.done()
    assert any(entry.batch.future is wanted for entry in broker.publisher._waiting)
    lab.close()


@pytest.mark.parametrize(
    "deadly",
    [a_message(headers={"x": "y" * 200_000}), a_message(exchange="nobody.declared.it")],
    ids=["a header beyond the frame size", "an exchange that does not exist"],
)
def test_a_message_that_ends_every_connection_is_given_up_and_takes_no_other_along(
    lab: BrokerLab, deadly: Message
) -> None:
    broker = lab.broker()
    before = broker.publish([a_message(number) for number in range(20)])
    bad = broker.publish([deadly])
    after = broker.publish([a_message(number) for number in range(20, 40)])

    with pytest.raises(Unpublishable, match="5 connections in a row"):
        bad.result(60)

    before.result(10)
    after.result(10)
    assert {body for _, body in lab.taken()} == set(range(40))
    assert broker.publisher._link.reconnects == 5
    eventually(lambda: not broker.problems, within=10)


def test_connections_lost_for_other_reasons_give_no_message_up(lab: BrokerLab, stack: Stack, vhost: str) -> None:
    broker = lab.broker()
    sent = []
    for number in range(7):
        eventually(lambda: not broker.problems, within=20, what="connected")
        sent.append(broker.publish([a_message(number)] * 200))
        stack.broker.ctl("close_all_connections", "--vhost", vhost, "a test")

    for batch in sent:
        batch.result(30)
    assert {body for _, body in lab.taken()} == set(range(7))


def test_a_connection_that_confirms_nothing_is_given_up_and_its_messages_are_sent_again(
    lab: BrokerLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, deaf = Publisher._confirmed, True

    def confirmed(self: Publisher, frame: Any) -> None:
        if not deaf:
            heard(self, frame)

    monkeypatch.setattr(Publisher, "_confirmed", confirmed)
    monkeypatch.setattr(publisher, "_SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(publisher, "_LOSSES_UNTIL_GIVEN_UP", 1)  # a loss that was counted as the messages' would show
    broker = lab.broker()
    sent = broker.publish([a_message(1), a_message(2)])
    eventually(lambda: broker.publisher._link.reconnects >= 2, within=20)
    assert not sent.done()

    deaf = False
    sent.result(20)
    assert {body for _, body in lab.taken("orders")} == {1, 2}


def test_a_connection_that_refuses_a_message_again_and_again_is_given_up_less_and_less_often(
    lab: BrokerLab, stack: Stack, vhost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that began while a queue had no leader does for ever. A queue that is full refuses on the next one too."""
    monkeypatch.setattr(publisher, "_REFUSAL_SECONDS", 0.2)
    monkeypatch.setattr(publisher, "_RETRY_SECONDS", 0.1)
    broker = lab.broker()
    fill(lab, stack, vhost)

    waits = broker.publish([a_message("last", to="submit.comfyui")])
    eventually(lambda: broker.publisher._link.reconnects >= 2, within=30)
    broker.publish([a_message(2)]).result(20)
    assert broker.publisher._patience >= 4, "what the full queue refuses is not forgotten over what another one takes"
    assert not waits.done()

    lab.taken("submit.comfyui")
    waits.result(30)
    assert [body for _, body in lab.taken("submit.comfyui")] == ["last"]
    eventually(lambda: broker.publisher._patience == 1, within=10)


def test_an_event_nobody_listens_to_is_done(lab: BrokerLab) -> None:
    message = a_message(exchange="events", to="order.completed", mandatory=False)

    lab.broker().publish([message]).result(10)


def test_a_message_to_a_deleted_queue_gets_through_once_it_is_declared_again(lab: BrokerLab) -> None:
    broker = lab.broker()
    lab.delete("submit.comfyui")

    broker.publish([a_message(1, to="submit.comfyui"), a_message(2)]).result(30)

    assert {body for _, body in lab.taken("submit.comfyui")} == {1}
    assert {body for _, body in lab.taken()} == {2}


def test_two_copies_of_a_message_to_a_deleted_queue_both_get_through(lab: BrokerLab) -> None:
    broker = lab.broker()
    lab.delete("submit.comfyui")

    broker.publish([a_message(to="submit.comfyui", message_id="same")] * 20).result(30)

    assert lab.depth("submit.comfyui") == 20


def test_a_message_to_a_queue_of_others_waits_without_hindering_the_rest(lab: BrokerLab) -> None:
    broker = lab.broker()
    waits = broker.publish([a_message(to="nobody.has.it")])

    for _ in range(20):
        broker.publish([a_message()]).result(10)
    assert not waits.done()
    assert broker.problems == []
    with lab.channel() as channel:
        channel.queue_declare("nobody.has.it", durable=True)

    waits.result(10)
    assert lab.depth("nobody.has.it") == 1


def test_a_message_to_a_full_queue_waits_until_there_is_room(lab: BrokerLab, stack: Stack, vhost: str) -> None:
    broker = lab.broker()
    fill(lab, stack, vhost)
    waits = broker.publish([a_message("last", to="submit.comfyui")])
    eventually(lambda: lab.depth("submit.comfyui") > 0, within=5)
    assert not waits.done()

    lab.taken("submit.comfyui")

    waits.result(20)


def fill(lab: BrokerLab, stack: Stack, vhost: str) -> None:
    """The submit queue takes no more; the broker overshoots its own limit by one or a few."""
    stack.broker.ctl("set_policy", "--vhost", vhost, "full", "^submit", '{"max-length": 1}')
    with lab.channel() as channel:
        channel.confirm_delivery()
        eventually(lambda: refused(channel), within=20, what="the queue is full")


def refused(channel: object) -> bool:
    try:
        channel.basic_publish("", "submit.comfyui", b"1")  # type: ignore[attr-defined]
    except NackError:
        return True
    return False


def test_the_depth_of_a_queue_counts_what_is_ready(lab: BrokerLab) -> None:
    broker = lab.broker()
    lab.put(1, 2, 3)

    assert eventually(lambda: depth(broker, "orders") == 3, within=10)


def depth(broker: object, queue: str) -> int | None:
    try:
        return broker.publisher.depth(queue).result(10)  # type: ignore[attr-defined]
    except BrokerAway:
        return None


def test_asking_for_a_deleted_queue_brings_it_back(lab: BrokerLab) -> None:
    broker = lab.broker()
    eventually(lambda: depth(broker, "orders") == 0, within=10)
    lab.delete("orders")

    assert depth(broker, "orders") is None
    eventually(lambda: depth(broker, "orders") == 0, within=20)


def test_without_a_broker_a_question_is_answered_at_once_and_a_message_waits(lab: BrokerLab) -> None:
    away = lab.broker(urls=[f"amqp://guest:guest@127.0.0.1:{free_port()}"], ready=False)
    waits = away.publish([a_message()])

    with pytest.raises(BrokerAway):
        away.publisher.depth("orders").result(5)
    assert not waits.done()
    assert away.problems == ["cannot publish"]

    away.stop()
    with pytest.raises(BrokerAway):
        waits.result(5)


def test_of_two_brokers_the_one_that_is_there_is_used(lab: BrokerLab) -> None:
    broker = lab.broker(urls=[f"amqp://guest:guest@127.0.0.1:{free_port()}", lab.url])

    broker.publish([a_message(1)]).result(10)

    assert lab.depth() == 1


def test_queues_declared_otherwise_by_somebody_else_are_said_to_be_no_connection(lab: BrokerLab) -> None:
    with lab.channel() as channel:
        channel.queue_declare("orders", durable=True)

    broker = lab.broker(ready=False)

    waits = broker.publish([a_message()])
    eventually(lambda: broker.publisher._link.reconnects >= 2, within=20, what="tried again")
    assert broker.problems == ["cannot publish"]
    with lab.channel() as channel:
        channel.queue_delete("orders")
    waits.result(30)
