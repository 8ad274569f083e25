"""What an upstream system does with the broker: publish orders, listen to events. And how deep the queues are."""

import json
import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pika
import pika.exceptions
from pika.adapters.blocking_connection import BlockingChannel

from shared.broker.topology import topology
from shared.domain.messages import Message, Order, order_placed

POOLS = ["comfyui"]
_SEEN = "upstream.seen"
_AWAY = (pika.exceptions.AMQPError, OSError)


class Mail:
    """One virtual host, seen from outside. Every call has connections of its own.

    url -- of a broker, or of several nodes of one cluster with commas between them
    """

    def __init__(self, url: str, pools: Sequence[str] = POOLS) -> None:
        self._url = url
        self._topology = topology(pools)
        self._events: dict[str, dict[str, Any]] = {}
        self.copies_of_events = 0
        #: event_id -> the traceparent its message carried.
        self.traces: dict[str, str] = {}
        self.declare()

    def declare(self) -> None:
        """Everything the services declare, and a queue of the upstream system's own that gets every event."""
        with self.channel() as channel:
            for exchange in self._topology.exchanges:
                channel.exchange_declare(exchange.name, exchange.type, durable=True)
            for each in self._topology.queues:
                channel.queue_declare(each.name, durable=True, arguments=dict(each.arguments))
                if each.binding is not None:
                    channel.queue_bind(each.name, *each.binding)
            channel.queue_declare(_SEEN, durable=True, arguments={"x-queue-type": "quorum"})
            channel.queue_bind(_SEEN, "events", "#")

    @contextmanager
    def channel(self) -> Iterator[BlockingChannel]:
        parameters = [pika.URLParameters(url) for url in self._url.split(",")]
        for each in parameters:
            each.heartbeat = 0
        connection = pika.BlockingConnection(parameters)
        try:
            channel = connection.channel()
            channel.confirm_delivery()
            yield channel
        finally:
            if connection.is_open:
                connection.close()

    def publish(self, messages: Sequence[Message], publishers: int = 1) -> None:
        """Every message is confirmed. They leave over so many connections at the same time, tried until they arrive."""
        waiting: queue.SimpleQueue[Message] = queue.SimpleQueue()
        for message in messages:
            waiting.put(message)
        failures: list[BaseException] = []
        start = threading.Barrier(publishers)

        def work() -> None:
            try:
                with self.channel() as channel:
                    start.wait(30)
                    self._drain(channel, waiting)
            except BaseException as error:  # noqa: BLE001 - reported by the thread that waits
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(publishers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    def publish_through_outages(self, *messages: Message) -> None:
        """Each again and again until the broker has confirmed it: what every upstream system should do."""
        waiting = deque(messages)
        while waiting:
            try:
                with self.channel() as channel:
                    while waiting:
                        self._send(channel, waiting[0])
                        waiting.popleft()
            except _AWAY:
                continue

    def place(self, orders: Sequence[Order], publishers: int = 1) -> None:
        self.publish([order_placed(order) for order in orders], publishers)

    def send(self, body: bytes, type_: str | None = "order.placed.v1", queue_name: str = "orders") -> None:
        """Any bytes at all, straight into a queue."""
        with self.channel() as channel:
            properties = pika.BasicProperties(delivery_mode=2, type=type_)
            channel.basic_publish("", queue_name, body, properties, mandatory=True)

    def depths(self) -> dict[str, int]:
        """Messages ready per queue of ours; those that a worker holds are not among them."""
        with self.channel() as channel:
            return {
                each.name: channel.queue_declare(each.name, passive=True).method.message_count
                for each in self._topology.queues
            }

    def events(self) -> list[dict[str, Any]]:
        """Every event so far, repeats left out by their event_id."""
        with self.channel() as channel:
            while True:
                method, properties, body = channel.basic_get(_SEEN, auto_ack=True)
                if method is None:
                    break
                event = json.loads(body)
                self.copies_of_events += event["event_id"] in self._events
                self._events[event["event_id"]] = event
                if trace := (properties.headers or {}).get("traceparent"):  # a test may publish one without
                    self.traces[event["event_id"]] = trace
        return list(self._events.values())

    @staticmethod
    def _drain(channel: BlockingChannel, waiting: "queue.SimpleQueue[Message]") -> None:
        while True:
            try:
                message = waiting.get_nowait()
            except queue.Empty:
                return
            Mail._send(channel, message)

    @staticmethod
    def _send(channel: BlockingChannel, message: Message) -> None:
        properties = pika.BasicProperties(
            delivery_mode=2,
            type=message.type,
            message_id=message.message_id,
            correlation_id=message.correlation_id,
            headers=dict(message.headers),
        )
        channel.basic_publish(
            message.exchange, message.routing_key, message.body, properties, mandatory=message.mandatory
        )
