"""Messages made to hurt: what stands in them stops neither the connection nor their neighbours."""

import struct
from collections.abc import Iterator, Sequence

import pika
import pytest

from shared.broker.broker import Broker
from shared.domain.messages import Delivery
from shared.domain.outcome import Done, Outcome
from tests.integration.broker_lab import BrokerLab, body_of
from tests.waiting import eventually


def a_short_string(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


def a_list(depth: int) -> bytes:
    value = b"V"
    for _ in range(depth):
        value = struct.pack(">cI", b"A", len(value)) + value
    return value


#: Field values that RabbitMQ takes and pika cannot decode.
UNREADABLE = {
    "milliseconds": struct.pack(">cQ", b"T", 1_700_000_000_000),
    "the last moment": struct.pack(">cQ", b"T", 2**64 - 1),
    "a list of lists": a_list(2000),
}


@pytest.fixture
def lab(amqp_url: str) -> Iterator[BrokerLab]:
    lab = BrokerLab(amqp_url)
    yield lab
    lab.close()


class Unreadable(pika.BasicProperties):
    """Properties with names c, m and t, and a header whose encoded value is given."""

    def __init__(self, value: bytes) -> None:
        super().__init__()
        self.value = value

    def encode(self) -> list[bytes]:
        field = a_short_string("x") + self.value
        flags = (
            self.FLAG_CONTENT_TYPE
            | self.FLAG_HEADERS
            | self.FLAG_CORRELATION_ID
            | self.FLAG_MESSAGE_ID
            | self.FLAG_TYPE
        )
        return [
            struct.pack(">H", flags),
            a_short_string("application/json"),
            struct.pack(">I", len(field)) + field,
            *(a_short_string(name) for name in ("c", "m", "t")),
        ]


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
