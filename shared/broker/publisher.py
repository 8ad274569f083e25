"""Publishing with pipelined confirms. A message leaves until it is confirmed, over any number of connections."""

import logging
import time
from collections import Counter as Multiset
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final, Protocol

import pika
from pika.adapters.select_connection import SelectConnection
from pika.channel import Channel

from shared.broker import crash_points
from shared.broker.connection import IOThread, Link
from shared.broker.topology import Topology
from shared.domain.errors import BrokerAway, Unpublishable
from shared.domain.messages import Message, app_id_of
from shared.observe.crash import crash_point
from shared.observe.metrics import our_version

log = logging.getLogger(__name__)

#: Unconfirmed messages on the wire at once; 200 already gives nearly all of the throughput.
_WINDOW: Final = 2000
_RETRY_SECONDS: Final = 1.0
#: A connection on which a message has waited so long for its confirm is given up, though it is open and answers
#: heartbeats. Longer than three heartbeats, which notice a silent peer.
_SILENCE_SECONDS: Final = 40.0
#: The same for one on which a message was refused (basic.nack) again and again. RabbitMQ 3.10 refuses at once and for
#: ever what comes over a channel that first published while a quorum queue had no leader, though the queue has another
#: one half a second later; on a new connection the same messages are taken.
_REFUSAL_SECONDS: Final = 10.0
#: A broker that is only slow, or whose queue is full, must not be left again and again: both waits double until nothing
#: waits any more.
_LONGEST_PATIENCE: Final = 8
#: Messages that wait, at which those that nobody waits for any more are looked for among them.
_MANY_WAITING: Final = 1000
#: Connections in a row that may be lost while a message is on the wire, before it travels alone, and before it is given
#: up. The broker ends the connection for a header beyond the frame size and the channel for a body beyond its limit;
#: travelling alone shows which of them it was, so an outage blames only what it hit five times.
_LOSSES_UNTIL_ALONE: Final = 2
_LOSSES_UNTIL_GIVEN_UP: Final = 5


class Counter(Protocol):
    """What the broker code needs of the metrics."""

    def count(self, name: str, amount: float = 1, /, **labels: str) -> None: ...

    def observe(self, name: str, seconds: float, /, **labels: str) -> None: ...

    def set(self, name: str, value: float, /, **labels: str) -> None: ...


@dataclass(slots=True)
class _Batch:
    left: int
    future: "Future[None]"
    done: Callable[[], None] | None

    def fail(self, error: Exception) -> None:
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


@dataclass(slots=True)
class _Entry:
    """One message until it is confirmed.

    losses     -- connections lost in a row while it was on the wire
    sent_at    -- time.monotonic() of the last send
    refused_at -- time.monotonic() of the first refusal; None while there was none
    """

    message: Message
    batch: _Batch
    losses: int = 0
    sent_at: float = 0.0
    refused_at: float | None = None

    @property
    def travels_alone(self) -> bool:
        return self.losses >= _LOSSES_UNTIL_ALONE


class Publisher:
    """Its own connection: during a broker alarm publishers are blocked and consumers are not."""

    def __init__(self, io: IOThread, urls: Sequence[str], topology: Topology, *, name: str, metrics: Counter) -> None:
        self._io = io
        self._metrics = metrics
        self._app_id = app_id_of(our_version())
        self._exchanges = {exchange.name for exchange in topology.exchanges}
        self._queues = {queue.name for queue in topology.queues}
        self._link = Link(
            io,
            urls,
            topology,
            name=f"{name} publishes",
            on_ready=self._connected,
            on_lost=self._lost,
            on_blocked=self._set_blocked,
            on_reconnect=lambda why: metrics.count("amqp_reconnects_total", reason=why),
        )
        self._channel: Channel | None = None
        self._asking: Channel | None = None
        self._questions: list[tuple[str, Future[int]]] = []
        self._waiting: deque[_Entry] = deque()
        self._swept_at = _MANY_WAITING
        self._unconfirmed: OrderedDict[int, _Entry] = OrderedDict()
        self._returned: Multiset[str] = Multiset()
        self._sent = 0
        self._started_at = 0.0
        self._resting = 0  # messages that came back or were refused, until they are sent again
        self._patience = 1
        self._unblocked_at = 0.0
        self.is_blocked = False
        self._closed = False

    @property
    def is_ready(self) -> bool:
        return self._channel is not None and self._channel.is_open and not self.is_blocked

    @property
    def is_closed(self) -> bool:
        return self._link.is_closed

    def open(self) -> None:
        """On the I/O thread."""
        self._link.open()
        self._listen()

    def close(self) -> None:
        """On the I/O thread. What is not confirmed fails with BrokerAway."""
        self._closed = True
        self._link.close()
        for entry in [*self._waiting, *self._unconfirmed.values()]:
            entry.batch.fail(BrokerAway("stopped before the broker confirmed"))
        self._waiting.clear()
        self._unconfirmed.clear()

    def publish(self, messages: Sequence[Message]) -> "Future[None]":
        """Done once every message is confirmed and none came back. From any thread.

        It waits through outages; cancel the future to stop trying (what is on the wire may arrive all the same). Fails
        with Unpublishable when one of them cannot be carried, with BrokerAway when this publisher is closed.
        """
        future: Future[None] = Future()
        if not messages:
            future.set_result(None)
            return future
        self._io.run(lambda: self._enqueue(messages, future, None))
        return future

    def publish_now(
        self, messages: Sequence[Message], done: Callable[[], None], failed: Callable[[BaseException], None]
    ) -> None:
        """On the I/O thread: the same, and `done` runs there after the last confirm.

        failed -- runs instead, with Unpublishable or BrokerAway
        """
        future: Future[None] = Future()
        future.add_done_callback(lambda it: failed(error) if (error := it.exception()) is not None else None)
        self._enqueue(messages, future, done)

    def depth(self, queue: str) -> "Future[int]":
        """Messages ready in `queue`, not counting those that consumers hold. From any thread."""
        future: Future[int] = Future()
        self._io.run(lambda: self._ask(queue, future))
        return future

    def _enqueue(self, messages: Sequence[Message], future: "Future[None]", done: Callable[[], None] | None) -> None:
        if self._closed:
            future.set_exception(BrokerAway("this publisher is closed"))
            return
        batch = _Batch(len(messages), future, done)
        self._waiting.extend(_Entry(message, batch) for message in messages)
        self._flush()
        if len(self._waiting) > self._swept_at:
            self._forget_cancelled()

    def _forget_cancelled(self) -> None:
        """In an outage that lasts, callers give up and come again: what they gave up must not pile up here."""
        self._waiting = deque(entry for entry in self._waiting if not entry.batch.future.done())
        self._swept_at = max(_MANY_WAITING, 2 * len(self._waiting))

    def _flush(self) -> None:
        while self._waiting and self.is_ready and self._has_room_for(self._waiting[0]):
            entry = self._waiting.popleft()
            if entry.batch.future.done():  # cancelled, or another of its batch cannot be carried
                continue
            message = entry.message
            properties = pika.BasicProperties(  # type: ignore[no-untyped-call]  # pika's own annotations are partial
                content_type="application/json",
                delivery_mode=2,
                type=message.type,
                message_id=message.message_id,
                correlation_id=message.correlation_id,
                headers=dict(message.headers),
                app_id=self._app_id,
            )
            assert self._channel is not None  # noqa: S101 - is_ready says so
            try:
                self._channel.basic_publish(
                    message.exchange, message.routing_key, message.body, properties, mandatory=message.mandatory
                )
            except Exception as error:
                # pika encodes all of a message before it sends any of it, so the broker did not count this one.
                log.exception("no message AMQP can carry", extra={"routing_key": message.routing_key})
                unpublishable = Unpublishable(f"no message AMQP can carry: {error!r:.500}")
                unpublishable.__cause__ = error
                entry.batch.fail(unpublishable)
                continue
            crash_point(crash_points.sent, message)
            self._sent += 1
            entry.sent_at = time.monotonic()
            self._unconfirmed[self._sent] = entry

    def _has_room_for(self, entry: _Entry) -> bool:
        if not self._unconfirmed:
            return True
        on_the_wire = next(iter(self._unconfirmed.values()))
        return len(self._unconfirmed) < _WINDOW and not entry.travels_alone and not on_the_wire.travels_alone

    def _listen(self) -> None:
        """Give up a connection that confirms nothing any more, or on which nothing can be sent since it was opened."""
        if self._closed:
            return
        self._io.later(1.0, self._listen)
        if self.is_blocked:
            return
        patience = self._patience * _SILENCE_SECONDS
        if self._channel is None:
            if self._link.open_seconds > patience:
                self._lose_patience("it is open and takes no messages")
        elif self._unconfirmed:
            since = max(next(iter(self._unconfirmed.values())).sent_at, self._unblocked_at)
            if time.monotonic() - since > patience:
                self._lose_patience("a message was not confirmed")

    def _lose_patience(self, why: str) -> None:
        """What was on the connection is sent again, and is not to blame."""
        self._patience = min(2 * self._patience, _LONGEST_PATIENCE)
        self._waiting.extendleft(reversed(self._unconfirmed.values()))
        self._unconfirmed.clear()
        self._channel = None
        self._link.fail(why)

    def _connected(self, connection: SelectConnection) -> None:
        connection.channel(on_open_callback=self._channel_open)

    def _channel_open(self, channel: Channel) -> None:
        channel.add_on_close_callback(self._channel_closed)
        channel.add_on_return_callback(self._was_returned)
        channel.confirm_delivery(self._confirmed, callback=lambda _: self._start(channel))

    def _start(self, channel: Channel) -> None:
        self._waiting.extendleft(reversed([entry for entry in self._unconfirmed.values() if self._survives(entry)]))
        self._unconfirmed.clear()
        self._returned.clear()
        self._sent = 0
        self._started_at = time.monotonic()
        self._channel = channel
        self._metrics.set("amqp_connected", 1)
        self._flush()
        self._open_asking()

    def _survives(self, entry: _Entry) -> bool:
        entry.losses += 1
        if entry.losses < _LOSSES_UNTIL_GIVEN_UP:
            return True
        log.error("message given up", extra={"routing_key": entry.message.routing_key, "losses": entry.losses})
        entry.batch.fail(Unpublishable(f"{entry.losses} connections in a row were lost while it was on the wire"))
        return False

    def _lost(self) -> None:
        self._channel = None
        self._asking = None
        self._set_blocked(blocked=False)
        self._metrics.set("amqp_connected", 0)
        for _, future in self._questions:
            if not future.done():
                future.set_exception(BrokerAway("the connection went while a queue's depth was asked"))
        self._questions.clear()

    def _channel_closed(self, _: Channel, why: BaseException) -> None:
        if self._channel is not None and self._link.is_ready:
            self._channel = None
            self._link.fail(str(why))

    def _set_blocked(self, blocked: bool) -> None:
        self.is_blocked = blocked
        self._metrics.set("amqp_blocked", float(blocked))
        if not blocked:
            self._unblocked_at = time.monotonic()
            self._flush()

    def _was_returned(self, _: Channel, method: Any, properties: Any, body: bytes) -> None:
        del body
        self._returned[properties.message_id] += 1
        log.warning("message came back: no such queue", extra={"routing_key": method.routing_key})

    def _confirmed(self, frame: Any) -> None:
        method = frame.method
        ok = method.NAME == "Basic.Ack"
        tags = (
            list(takewhile(lambda tag: tag <= method.delivery_tag, self._unconfirmed))  # they are in order
            if method.multiple
            else [method.delivery_tag]
        )
        again: list[_Entry] = []
        for tag in tags:
            entry = self._unconfirmed.pop(tag, None)
            if entry is None:
                continue
            returned = self._returned[entry.message.message_id] > 0
            if returned:
                self._returned -= Multiset([entry.message.message_id])  # forgets what reaches zero
            entry.losses = 0
            result = "returned" if returned else "confirmed" if ok else "nacked"
            self._metrics.count("publishes_total", result=result)
            if result == "confirmed":
                self._metrics.observe("publish_confirm_seconds", time.monotonic() - entry.sent_at)
                crash_point(crash_points.confirmed, entry.message)
                self._count_down(entry.batch)
            else:
                again.append(entry)
        if again:
            self._rest(again, refused=not ok)
        if self._channel is not None and not self._unconfirmed and not self._resting:
            self._patience = 1
        self._flush()

    def _rest(self, entries: Sequence[_Entry], refused: bool) -> None:
        """The queue is full, gone or without a leader. All pass: it drains, or a new connection finds it in order."""
        self._resting += len(entries)
        self._io.later(_RETRY_SECONDS, lambda: self._again(entries))
        if refused:
            now = time.monotonic()
            for entry in entries:
                entry.refused_at = entry.refused_at or now
            first = max(self._started_at, min(entry.refused_at or now for entry in entries))
            if now - first > self._patience * _REFUSAL_SECONDS and self._link.is_ready:
                self._lose_patience("a message was refused again and again")
        elif any(self._can_declare(entry.message) for entry in entries):
            self._link.fail("a message came back, so a queue is missing")

    def _can_declare(self, message: Message) -> bool:
        """A queue that is not in our topology is somebody else's: no connection of ours brings it back."""
        return message.exchange in self._exchanges if message.exchange else message.routing_key in self._queues

    def _again(self, entries: Sequence[_Entry]) -> None:
        self._resting -= len(entries)
        if self._closed:
            for entry in entries:
                entry.batch.fail(BrokerAway("stopped before the broker confirmed"))
            return
        self._waiting.extendleft(reversed(entries))
        self._flush()

    def _count_down(self, batch: _Batch) -> None:
        batch.left -= 1
        if batch.left:
            return
        if batch.done is not None:
            batch.done()
        elif batch.future.set_running_or_notify_cancel():
            batch.future.set_result(None)

    def _open_asking(self) -> None:
        connection = self._channel.connection if self._channel is not None else None
        if connection is not None and connection.is_open:

            def opened(channel: Channel) -> None:
                self._asking = channel
                channel.add_on_close_callback(self._asking_closed)

            connection.channel(on_open_callback=opened)

    def _ask(self, queue: str, future: "Future[int]") -> None:
        if self._asking is None or not self._asking.is_open or self.is_blocked:
            # During an alarm the broker reads nothing from this connection: a question would wait as long.
            future.set_exception(BrokerAway("blocked" if self.is_blocked else "not connected"))
            return
        question = (queue, future)
        self._questions.append(question)

        def answered(frame: Any) -> None:
            if question in self._questions:
                self._questions.remove(question)
            if not future.done():
                future.set_result(frame.method.message_count)

        self._asking.queue_declare(queue, passive=True, callback=answered)

    def _asking_closed(self, channel: Channel, why: BaseException) -> None:
        if channel is not self._asking:
            return
        self._asking = None
        for _, future in self._questions:
            if not future.done():
                future.set_exception(BrokerAway(str(why)))
        self._questions.clear()
        if self._link.is_ready:  # 404: a queue was deleted. A new connection declares it again.
            self._link.fail(str(why))
