"""Every exchange, queue and argument, in one table. Nothing else in the project names an argument."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from shared.domain.errors import DarkroomError
from shared.domain.task import Stage

#: A redelivery counts, also for messages a dying worker had only prefetched, so this must stay well above the
#: number of restarts a deploy makes. Past it the broker moves the message to the dead queue.
DELIVERY_LIMIT: Final = 20
#: Looking into a dead queue counts as a delivery too.
DEAD_DELIVERY_LIMIT: Final = 1000

ORDERS_EXCHANGE: Final = "orders"
EVENTS_EXCHANGE: Final = "events"
ORDERS_QUEUE: Final = "orders"


class ReservedPool(DarkroomError):
    """A pool's name would give one of its queues the name of a dead queue."""


@dataclass(frozen=True, slots=True)
class Exchange:
    name: str
    type: str = "topic"


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable quorum queue. binding -- (exchange, routing key), None: reached by its name alone."""

    name: str
    arguments: Mapping[str, Any]
    binding: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Topology:
    exchanges: Sequence[Exchange]
    queues: Sequence[Queue]


def submit_queue(pool: str) -> str:
    return f"submit.{pool}"


def check_queue(pool: str) -> str:
    return f"check.{pool}"


def dead_queue(stage: Stage) -> str:
    return f"{stage}.dead"


def stage_of(queue: str) -> Stage:
    """Which step a work queue belongs to: submit.comfyui -> submit."""
    return Stage(queue.split(".", 1)[0])


def buries_to(queue: str) -> str | None:
    """Where a consumer of `queue` puts what cannot go on; None for a dead queue, which is the end of the way."""
    return None if queue in _DEAD_QUEUES else dead_queue(stage_of(queue))


def topology(pools: Sequence[str]) -> Topology:
    """What must exist before anything is published or consumed; dead queues come first. Pure.

    Raises ReservedPool.
    """
    for pool in pools:
        if submit_queue(pool) in _DEAD_QUEUES:
            raise ReservedPool(f"a pool cannot be called {pool!r}: its queue {submit_queue(pool)} is the dead queue")
    dead = [Queue(name, _DEAD) for name in _DEAD_QUEUES]
    work = [Queue(ORDERS_QUEUE, _work(Stage.ORDERS), (ORDERS_EXCHANGE, "order.placed"))]
    for pool in pools:
        work.append(Queue(submit_queue(pool), _work(Stage.SUBMIT)))
        work.append(Queue(check_queue(pool), _work(Stage.CHECK)))
    return Topology((Exchange(ORDERS_EXCHANGE), Exchange(EVENTS_EXCHANGE)), (*dead, *work))


_DEAD_QUEUES: Final = tuple(dead_queue(stage) for stage in Stage)
_DEAD: Final[Mapping[str, Any]] = {
    "x-queue-type": "quorum",
    "x-delivery-limit": DEAD_DELIVERY_LIMIT,
    "x-overflow": "reject-publish",
}


def _work(stage: Stage) -> Mapping[str, Any]:
    """At-least-once dead-lettering needs the strategy, the exchange and reject-publish, all three."""
    return {
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-overflow": "reject-publish",
        "x-dead-letter-strategy": "at-least-once",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": dead_queue(stage),
    }
