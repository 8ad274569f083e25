"""Takes deliveries: its own connection, a channel per queue, and the threads that handle what arrives."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pika.channel import Channel

from shared.broker.connection import IOThread, Link
from shared.broker.deliveries import LONG_OUTAGE_SECONDS, Active, Hand, Handler, InHand, Subscription
from shared.broker.handling import Handling
from shared.broker.listening import Listening
from shared.broker.publisher import Counter, Publisher
from shared.broker.settling import Settling
from shared.broker.tags import Tags
from shared.broker.topology import Topology
from shared.broker.wire import Connection, cancel
from shared.domain.messages import Delivery
from shared.domain.outcome import FollowUp

__all__ = ["Consumer", "Handler", "Subscription"]

log = logging.getLogger(__name__)


class Consumer:
    """What died with a process comes to the next one first, and one at a time: a message that kills whoever handles it
    takes no neighbour along into the delivery limit, see docs/decisions/0011-one-by-one-after-a-death.md.

    clear       -- notes that the follow-ups of final rows are confirmed (Tasks.clear_due); may raise Outage
    brake_after -- deliveries of one queue buried for a bug in a row after which that queue is left alone
    long_outage_seconds -- after so long without what the handlers need, or a way to publish, nothing more is taken
    """

    def __init__(
        self,
        io: IOThread,
        urls: Sequence[str],
        topology: Topology,
        subscriptions: Sequence[Subscription],
        publisher: Publisher,
        *,
        name: str,
        metrics: Counter,
        clear: Callable[[Sequence[FollowUp]], None],
        brake_after: int = 50,
        long_outage_seconds: float = LONG_OUTAGE_SECONDS,
    ) -> None:
        self._io = io
        self._metrics = metrics
        self._publisher = publisher
        self._could_publish_at = time.monotonic()
        self._is_mute = False
        self._long_outage = long_outage_seconds
        self._active = {s.queue: Active(s) for s in subscriptions}
        self._link = Link(
            io,
            urls,
            topology,
            name=f"{name} consumes",
            on_ready=self._connected,
            on_lost=self._lost,
            on_reconnect=lambda why: metrics.count("amqp_reconnects_total", reason=why),
        )
        self._connection: Connection | None = None
        self._hand = Hand()
        self._stopping = threading.Event()
        self._draining = False
        self._settling = Settling(
            io,
            publisher,
            self._hand,
            self._stopping,
            metrics=metrics,
            clear=clear,
            brake=self._brake,
            brake_after=brake_after,
        )
        self._listening = Listening(io, self._link, self._active.values(), self._hand, self._is_wanted)
        self._handlers: list[threading.Thread] = []
        self._closer = threading.Thread(target=self._settling.close_debts, name="closer", daemon=True)

    @property
    def problems(self) -> list[str]:
        """Why this consumer is not ready; empty when it is. A paused queue is no problem, a braked one is."""
        found = [] if self._link.is_ready else ["not connected"]
        for name, active in self._active.items():
            if active.braked is not None:
                found.append(f"{name}: {active.braked}")
            elif active.outages:
                found.append(f"{name}: waits for the end of an outage")
            elif self._link.is_ready and not active.paused and not self._is_mute and active.consumer_tag is None:
                found.append(f"{name}: not consuming")
        return found

    @property
    def is_whole(self) -> bool:
        """False before the start, and once one of its threads has died: what that one should do would never be done."""
        return self._stopping.is_set() or all(thread.is_alive() for thread in [*self._handlers, self._closer])

    @property
    def in_hand(self) -> int:
        return len(self._hand)

    def start(self) -> None:
        self._io.run(self._link.open)
        self._io.run(self._listening.look)
        self._io.run(self._look_at_publisher)
        for name, active in self._active.items():
            handling = Handling(
                active,
                self._hand,
                self._stopping,
                settle=self._settling.settle,
                give_back=self._give_back,
                outlast=self._outlast,
                long_outage_seconds=self._long_outage,
            )
            for number in range(active.subscription.threads):
                self._handlers.append(threading.Thread(target=handling.work, name=f"{name}-{number}", daemon=True))
        for thread in [*self._handlers, self._closer]:
            thread.start()

    def pause(self, queue_name: str) -> None:
        """Take no more from this queue; what is in hand goes on. From any thread."""
        self._io.run(lambda: self._set_paused(self._active[queue_name], paused=True))

    def resume(self, queue_name: str) -> None:
        """Take from it again. From any thread."""
        self._io.run(lambda: self._set_paused(self._active[queue_name], paused=False))

    def drain(self, within_seconds: float) -> bool:
        """Take nothing more, finish what handlers have begun; True when all of it was acked in time."""
        self._draining = True
        self._stopping.set()
        for active in self._active.values():
            self._io.run(partial(self._cancel, active))
            for _ in range(active.subscription.threads):
                active.inbox.put(None)
        deadline = time.monotonic() + within_seconds
        for thread in self._handlers:
            thread.join(max(0.1, deadline - time.monotonic()))
        settled = threading.Event()
        self._io.run(settled.set)  # behind everything the handlers had the I/O thread do
        settled.wait(1.0)
        while self.in_hand and time.monotonic() < deadline:
            time.sleep(0.02)
        self._settling.no_more_debts()  # the closer comes last: it acks what the handlers leave
        self._closer.join(max(0.1, deadline - time.monotonic()))
        return not self.in_hand

    def close(self) -> None:
        """On the I/O thread. Unacked deliveries go back to their queues."""
        self._link.close()

    @property
    def is_closed(self) -> bool:
        return self._link.is_closed

    def _brake(self, active: Active, why: str) -> None:
        """Leave the queue alone until the next start: only a person can help. From any thread."""
        if active.braked is None:
            active.braked = why
            log.error("queue left alone", extra={"queue": active.subscription.queue, "why": why})
            self._io.run(partial(self._cancel, active))

    def _give_back(self, active: Active, batch: Sequence[InHand]) -> None:
        """Deliveries of a braked queue go to other processes. From any thread."""
        self._hand.finish(batch)
        self._io.run(partial(self._return, active, batch))

    def _outlast(self, active: Active, change: int) -> None:
        """One thread more, or fewer, waits out a long outage. From any thread."""

        def count() -> None:
            active.outages += change
            self._follow_wishes(active)

        self._io.run(count)

    # --- the I/O thread -------------------------------------------------------------------------------------------

    def _connected(self, connection: Connection) -> None:
        self._connection = connection
        for active in self._active.values():
            self._open_channel(active)

    def _lost(self) -> None:
        self._connection = None
        for active in self._active.values():
            active.forget_channel()

    def _open_channel(self, active: Active) -> None:
        if self._connection is None or not self._connection.is_open or not self._is_wanted(active):
            return

        def opened(channel: Channel) -> None:
            if active.channel is not None:  # wanted twice at once: this one is of no use
                channel.close()
                return
            active.channel, active.tags = channel, Tags()
            channel.add_on_close_callback(lambda _, why: self._channel_closed(active, channel, why))
            channel.add_on_cancel_callback(lambda _: self._link.fail(f"{active.subscription.queue} was deleted"))
            self._consume(active)

        self._connection.channel(on_open_callback=opened)

    def _is_wanted(self, active: Active) -> bool:
        in_the_way = active.paused or active.outages or self._is_mute or self._draining
        return not in_the_way and active.braked is None

    def _consume(self, active: Active) -> None:
        if active.channel is None or not active.channel.is_open or active.consumer_tag is not None:
            return
        if self._is_wanted(active):
            # The broker reads both in this order; a prefetch is that of the consumers that begin after it.
            active.channel.basic_qos(prefetch_count=active.prefetch)
            active.consumer_tag = active.channel.basic_consume(
                active.subscription.queue,
                lambda channel, method, properties, body: self._arrived(active, channel, method, properties, body),
            )

    def _channel_closed(self, active: Active, channel: Channel, why: BaseException) -> None:
        if active.channel is channel:
            active.forget_channel()
            if self._link.is_ready and not self._draining:
                self._link.fail(f"{active.subscription.queue}: {why}")

    def _set_paused(self, active: Active, *, paused: bool) -> None:
        if active.paused == paused:
            return
        active.paused = paused
        log.info("queue paused" if paused else "queue resumed", extra={"queue": active.subscription.queue})
        self._follow_wishes(active)

    def _look_at_publisher(self) -> None:
        """During an alarm that lasts, say: nothing that is handled can be finished."""
        self._io.later(1.0, self._look_at_publisher)
        now = time.monotonic()
        if self._publisher.is_ready:
            self._could_publish_at = now
        is_mute = now - self._could_publish_at > self._long_outage
        if is_mute != self._is_mute:
            self._is_mute = is_mute
            for active in self._active.values():
                self._follow_wishes(active)

    def _follow_wishes(self, active: Active) -> None:
        if not self._is_wanted(active):
            self._cancel(active)
        elif active.channel is not None and active.channel.is_open:
            self._consume(active)
        else:
            self._open_channel(active)

    def _cancel(self, active: Active) -> None:
        channel = active.channel
        if channel is None or not channel.is_open or active.consumer_tag is None or active.cancelling:
            return

        def cancelled() -> None:
            if active.channel is channel:
                active.consumer_tag = None
                active.cancelling = False
                self._return(active, active.returning)
                active.returning = []
                self._consume(active)  # it may be wanted again by now

        active.cancelling = True
        cancel(channel, active.consumer_tag, cancelled)

    def _return(self, active: Active, batch: Sequence[InHand]) -> None:
        """Not before the broker sends no more: it would hand these out to us again, and each time counts."""
        if active.consumer_tag is not None:
            active.returning += batch
            return
        for in_hand in batch:
            if in_hand.channel.is_open:
                in_hand.channel.basic_nack(in_hand.tag)

    def _arrived(self, active: Active, channel: Channel, method: Any, properties: Any, body: bytes) -> None:
        active.arrived += 1
        delivery = Delivery(
            queue=active.subscription.queue,
            body=body,
            type=_text(properties.type),
            message_id=_text(properties.message_id),
            correlation_id=_text(properties.correlation_id),
            headers=properties.headers or {},
            redelivered=method.redelivered,
            exchange=_text(method.exchange),
            routing_key=_text(method.routing_key),
            app_id=_text(properties.app_id),
        )
        if method.redelivered:
            self._metrics.count("message_redeliveries_total", queue=delivery.queue)
        elif active.one_by_one:
            active.one_by_one = False
            self._cancel(active)  # and consume again, with the whole prefetch
        active.inbox.put(InHand(delivery, method.delivery_tag, channel, active.tags, time.monotonic(), active))


def _text(short_string: object) -> str | None:
    """A short string of AMQP (at most 255 bytes); one that is not UTF-8 comes as bytes and counts as absent."""
    return short_string if isinstance(short_string, str) else None
