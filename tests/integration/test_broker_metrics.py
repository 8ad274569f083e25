"""What the broker's side measures is as long as what happened."""

import time
from collections.abc import Iterator, Sequence

import pytest

from shared.domain.messages import Delivery
from shared.domain.outcome import Done, Outcome
from shared.observe.catalog import PREFIX
from tests.factories import MEASURED
from tests.integration.broker_lab import BrokerLab, a_message
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
