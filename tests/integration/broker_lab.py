"""Brokers of ours on one virtual host, and a plain connection beside them to look and to meddle."""

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pika
from pika.adapters.blocking_connection import BlockingChannel

from shared.broker.broker import Broker
from shared.broker.consumer import Handler, Subscription
from shared.broker.topology import topology
from shared.domain.messages import Delivery, Message
from tests.factories import MEASURED, POOL
from tests.waiting import eventually

TOPOLOGY = topology([POOL])


def a_message(body: Any = None, *, to: str = "orders", **fields: Any) -> Message:
    values = {"routing_key": to, "type": "test.v1", "body": json.dumps(body).encode(), "message_id": str(uuid.uuid4())}
    return Message(**values | fields)


def body_of(delivery: Delivery) -> Any:
    return json.loads(delivery.body)


class BrokerLab:
    """`url` -- where the lab itself connects; brokers may be given others."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._started: list[Broker] = []

    def broker(
        self,
        handler: Handler | None = None,
        *,
        queue: str = "orders",
        urls: Sequence[str] = (),
        ready: bool = True,
        prefetch: int = 20,
        batch: int = 20,
        threads: int = 1,
        hold_seconds: float = 60.0,
        **options: Any,
    ) -> Broker:
        """A started broker; with a handler, it consumes `queue`."""
        subscriptions = []
        if handler is not None:
            wanted = {"prefetch": prefetch, "batch": batch, "threads": threads, "hold_seconds": hold_seconds}
            subscriptions.append(Subscription(queue=queue, handler=handler, **wanted))  # type: ignore[arg-type]
        broker = Broker(
            urls or [self.url], TOPOLOGY, name="test", metrics=MEASURED, subscriptions=subscriptions, **options
        )
        broker.start()
        self._started.append(broker)
        if ready:
            eventually(lambda: not broker.problems, within=30, what="ready")
        return broker

    def close(self) -> None:
        for broker in self._started:
            broker.stop(0.5)

    @contextmanager
    def channel(self) -> Iterator[BlockingChannel]:
        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            yield connection.channel()

    def put(self, *bodies: Any, queue: str = "orders") -> None:
        with self.channel() as channel:
            channel.confirm_delivery()
            for body in bodies:
                properties = pika.BasicProperties(delivery_mode=2, type="test.v1", message_id=str(uuid.uuid4()))
                channel.basic_publish("", queue, json.dumps(body).encode(), properties, mandatory=True)

    def depth(self, queue: str = "orders") -> int:
        """Messages ready; those a consumer holds do not count."""
        with self.channel() as channel:
            return int(channel.queue_declare(queue, passive=True).method.message_count)

    def consumers(self, queue: str = "orders") -> int:
        """As the broker counts them."""
        with self.channel() as channel:
            return int(channel.queue_declare(queue, passive=True).method.consumer_count)

    def taken(self, queue: str = "orders") -> list[tuple[Any, Any]]:
        """Everything in the queue, taken out: properties and body."""
        found = []
        with self.channel() as channel:
            while True:
                method, properties, body = channel.basic_get(queue, auto_ack=True)
                if method is None:
                    return found
                found.append((properties, json.loads(body or b"null")))

    def delete(self, queue: str) -> None:
        with self.channel() as channel:
            channel.queue_delete(queue)
