"""Puts orders into darkroom as an upstream system does, and asks its database what became of them."""

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final

import sqlalchemy as sa

from deploy.local.stack import Stack
from shared.broker.broker import Broker
from shared.broker.topology import topology
from shared.database.engine import connect
from shared.domain.messages import Message, Order, order_placed
from shared.observe import metrics

#: Side of the pictures: small, since it is the way of the order that is measured.
PIXELS: Final = 16
_PER_BATCH: Final = 100
_ASK_SECONDS: Final = 0.5


class NotFinished(Exception):
    """Orders were still on their way when time was up; the text counts them."""


class Upstream:
    """A connection that publishes with pipelined confirms. Used as a context manager."""

    def __init__(self, stack: Stack) -> None:
        self._broker = Broker([stack.amqp_url], topology(["comfyui"]), name="bench", metrics=metrics.build("producer"))

    def __enter__(self) -> "Upstream":
        self._broker.start()
        self._broker.publish([]).result(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._broker.stop()

    def publish(self, messages: Sequence[Message]) -> None:
        """Returns when all are confirmed."""
        futures = [
            self._broker.publish(messages[start : start + _PER_BATCH]) for start in range(0, len(messages), _PER_BATCH)
        ]
        for future in futures:
            future.result(60)


def some_orders(count: int) -> list[Order]:
    """Tiny one-coloured pictures, each order of another colour, so that no server finds one in its cache."""
    return [
        Order(
            idempotency_key=str(uuid.uuid4()),
            pool="comfyui",
            workflow="solid-invert",
            inputs={"width": PIXELS, "height": PIXELS, "color": number},
        )
        for number in range(count)
    ]


def placed(orders: Sequence[Order]) -> list[Message]:
    return [order_placed(order) for order in orders]


class Rows:
    """Questions to a database; few and cheap, since its CPU time is measured."""

    def __init__(self, database_url: str) -> None:
        self._engine = connect(database_url, pool_size=1)

    def close(self) -> None:
        self._engine.dispose()

    def ask(self, question: str, **values: Any) -> list[Any]:
        with self._engine.connect() as connection:
            return list(connection.execute(sa.text(question), values))

    def number(self, question: str, **values: Any) -> int:
        return int(self.ask(question, **values)[0][0])

    def wait_until(self, question: str, reached: Callable[[int], bool], within_seconds: float) -> None:
        """Ask a few times a second until the number satisfies. Raises NotFinished."""
        deadline = time.monotonic() + within_seconds
        while not reached(found := self.number(question)):
            if time.monotonic() > deadline:
                raise NotFinished(f"{question}: {found} after {within_seconds:.0f} s")
            time.sleep(_ASK_SECONDS)
