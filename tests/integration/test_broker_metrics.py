"""What the broker's side measures is as long as what happened."""

import time
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

import pytest
from pika.exceptions import AMQPHeartbeatTimeout

from deploy.local import Stack
from shared.broker.connection import _kind_of
from shared.domain.messages import Delivery
from shared.domain.outcome import Done, Outcome
from shared.observe.catalog import PREFIX, RECONNECTS
from tests.factories import MEASURED
from tests.integration.broker_lab import BrokerLab, a_message
from tests.proxy import FaultProxy
from tests.waiting import eventually


@pytest.fixture
def lab(amqp_url: str) -> Iterator[BrokerLab]:
    lab = BrokerLab(amqp_url)
    yield lab
    lab.close()


def measured(sample: str, **labels: str) -> float:
    return MEASURED.registry.get_sample_value(PREFIX + sample, labels) or 0.0


def test_a_delivery_counts_as_in_hand_for_as_long_as_its_handler_took(lab: BrokerLab) -> None:
    def slow(deliveries: Sequence[Delivery]) -> list[Outcome]:
        time.sleep(0.3)
        return [Done() for _ in deliveries]

    name = "message_handle_seconds"
    count, total = measured(f"{name}_count", queue="orders"), measured(f"{name}_sum", queue="orders")
    quick = measured(f"{name}_bucket", queue="orders", le="0.25")
    lab.broker(slow, batch=1)
    begun = time.monotonic()
    lab.put(1)
    eventually(lambda: measured(f"{name}_count", queue="orders") == count + 1, within=10)
    assert measured(f"{name}_bucket", queue="orders", le="0.25") == quick
    assert 0.3 <= measured(f"{name}_sum", queue="orders") - total <= time.monotonic() - begun


def test_every_confirmed_publish_is_timed_from_its_send_to_the_confirm(lab: BrokerLab) -> None:
    broker = lab.broker()
    name = "publish_confirm_seconds"
    count, total = measured(f"{name}_count"), measured(f"{name}_sum")
    confirmed = measured("publishes_total", result="confirmed")
    begun = time.monotonic()
    broker.publish([a_message(n) for n in range(5)]).result(10)
    assert measured("publishes_total", result="confirmed") - confirmed == 5
    assert measured(f"{name}_count") - count == 5
    assert 0 < measured(f"{name}_sum") - total <= 5 * (time.monotonic() - begun)


def test_a_connection_that_is_made_again_is_counted_with_why_the_last_one_went(
    lab: BrokerLab, stack: Stack, vhost: str, amqp_url: str
) -> None:
    def counted() -> dict[str, float]:
        return {why: measured("amqp_reconnects_total", reason=why) for why in RECONNECTS}

    def and_then(why: str) -> dict[str, float]:
        return {name: value + (name == why) for name, value in before.items()}

    proxy = FaultProxy(urlsplit(amqp_url).port or 0)
    broker = lab.broker(urls=[proxy.url(amqp_url)])
    try:
        before = counted()
        stack.broker.ctl("close_all_connections", "--vhost", vhost, "a test")
        eventually(lambda: counted() == and_then("closed_by_broker") and not broker.problems, within=20)
        before = counted()
        broker._io.run(lambda: broker.publisher._link.fail("a test"))
        eventually(lambda: counted() == and_then("given_up") and not broker.problems, within=20)
        before = counted()
        proxy.reset()
        eventually(lambda: counted() == and_then("network") and not broker.problems, within=20)
    finally:
        proxy.close()
    assert _kind_of(AMQPHeartbeatTimeout()) == "heartbeat"
