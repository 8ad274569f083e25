"""Proves the way of a dead letter: a canary that the broker buries like an order, through the real dead queues."""

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pika
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection
from pika.exceptions import ChannelClosedByBroker

from shared.broker.topology import Topology, buries_to, dead_queue
from shared.domain.canary import ANSWER_TO, CANARY, OWN_QUEUES
from shared.domain.finding import Finding, Verdict
from shared.domain.task import Stage

_ABOUT: Final = "dead letters"
_ARRIVES_WITHIN_SECONDS: Final = 5.0
#: The canaries' own queues go by themselves after so long, should the doctor be killed while they are there.
_EXPIRES_MS: Final = 60_000


@dataclass(slots=True)
class _Canary:
    """One canary on its way. nest -- the doctor's queue it starts from, made like the work queue of its stage"""

    dead: str
    nest: str
    is_collected: bool


def examine_dead_letters(
    connection: BlockingConnection, topology: Topology, *, silent_collector: Verdict = Verdict.FAIL
) -> Iterator[Finding]:
    """Whether what dies in each stage comes to the collector.

    A canary is rejected in a queue of its own that buries as the stage's work queues do. The collector knows it,
    answers, and makes no row of it. While nobody collects, it is taken out of the dead queue here, so none is sent
    where letters wait before it. One that is lost on its way is the collector's to take, whenever that comes to it.

    silent_collector -- the verdict on one that does not answer
    """
    channel = connection.channel()
    home = f"{OWN_QUEUES}{uuid.uuid4().hex}"
    answered: list[str] = []
    channel.queue_declare(home, exclusive=True)
    channel.basic_consume(home, lambda *got: answered.append(got[-1].decode(errors="replace")), auto_ack=True)
    under_way: list[_Canary] = []
    ends = time.monotonic() + _ARRIVES_WITHIN_SECONDS
    try:
        for stage in Stage:
            depth = _depth(connection, dead_queue(stage))
            if depth is None:
                continue  # it is said elsewhere that the queue is missing
            letters, consumers = depth
            if letters and not consumers:
                found = f"{letters} wait in {dead_queue(stage)} and nobody collects them"
                yield Finding(_ABOUT, Verdict.WARN, found, "start the ops service")
                continue
            canary = _Canary(dead_queue(stage), f"{home}.{stage}", is_collected=consumers > 0)
            under_way.append(canary)
            _send(channel, canary, home, _arguments(topology, canary.dead), ends)
        yield from _follow(connection, under_way, answered, ends, silent_collector)
    finally:
        if connection.is_open:
            with connection.channel() as last:  # the other one may be closed by what went wrong
                for canary in under_way:
                    last.queue_delete(canary.nest)


def _depth(connection: BlockingConnection, queue: str) -> tuple[int, int] | None:
    """Messages ready, consumers; None when there is no such queue."""
    try:
        with connection.channel() as channel:
            found = channel.queue_declare(queue, passive=True).method
    except ChannelClosedByBroker as error:
        if error.reply_code != 404:
            raise
        return None
    return found.message_count, found.consumer_count


def _arguments(topology: Topology, dead: str) -> dict[str, Any]:
    """Those of the work queues that bury into `dead`, and an end."""
    work = next(queue for queue in topology.queues if buries_to(queue.name) == dead)
    return {**work.arguments, "x-expires": _EXPIRES_MS}


def _send(channel: BlockingChannel, canary: _Canary, home: str, arguments: dict[str, Any], ends: float) -> None:
    """Put it into its nest and reject it there; the broker does the rest."""
    properties = pika.BasicProperties(  # type: ignore[no-untyped-call]  # pika's annotations are partial
        delivery_mode=2, type=CANARY, message_id=canary.nest, headers={ANSWER_TO: home}
    )
    channel.queue_declare(canary.nest, durable=True, arguments=arguments)
    channel.basic_publish("", canary.nest, b"", properties)
    while time.monotonic() < ends:
        method, _, _ = channel.basic_get(canary.nest)
        if method is not None:
            channel.basic_reject(method.delivery_tag, requeue=False)
            return
        channel.connection.sleep(0.02)


def _follow(
    connection: BlockingConnection,
    under_way: list[_Canary],
    answered: list[str],
    ends: float,
    silent_collector: Verdict,
) -> Iterator[Finding]:
    """Until each has arrived or their time is over."""
    missing = list(under_way)
    with connection.channel() as sweeper:  # what it holds of others goes back when it closes
        while missing and time.monotonic() < ends:
            connection.process_data_events(time_limit=0.05)
            for canary in list(missing):
                if canary.dead in answered:
                    missing.remove(canary)
                    found = f"a rejected message came through {canary.dead} to the collector"
                    yield Finding(_ABOUT, Verdict.OK, found)
                elif not canary.is_collected and _swept(sweeper, canary):
                    missing.remove(canary)
                    found = f"a rejected message came to {canary.dead}, where nobody collects"
                    yield Finding(_ABOUT, Verdict.WARN, found, "start the ops service")
    for canary in missing:
        found = f"a rejected message did not come through {canary.dead} within {_ARRIVES_WITHIN_SECONDS:g} s"
        advice = "look at /readyz and the log of the ops service, then at the broker's log"
        yield Finding(_ABOUT, silent_collector if canary.is_collected else Verdict.FAIL, found, advice)


def _swept(sweeper: BlockingChannel, canary: _Canary) -> bool:
    """Take the canary out of its dead queue, if that is what comes next there."""
    method, properties, _ = sweeper.basic_get(canary.dead)
    if method is None or properties is None:
        return False
    if properties.message_id == canary.nest:
        sweeper.basic_ack(method.delivery_tag)
        return True
    if properties.type == CANARY:  # of another doctor, who waits for it
        sweeper.basic_nack(method.delivery_tag)
    return False
