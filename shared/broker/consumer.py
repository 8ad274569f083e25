"""Takes deliveries, lets handlers decide, carries the verdicts out: publish, confirm, clear what was owed, ack last."""

import logging
import queue
import random
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from pika.adapters.select_connection import SelectConnection
from pika.channel import Channel

from shared.broker.connection import IOThread, Link
from shared.broker.publisher import Counter, Publisher
from shared.broker.topology import Topology, dead_queue, stage_of
from shared.domain.errors import Outage
from shared.domain.messages import DEAD_LETTER, Delivery, Message, dead_letter_headers
from shared.domain.outcome import DeadLetter, Done, FollowUp, Hold, Outcome, Verdict
from shared.domain.retry import Bug, tried
from shared.domain.task import Reason, Stage

log = logging.getLogger(__name__)

_HOLD_SECONDS: Final = 0.2
_OUTAGE_SECONDS: Final = (0.2, 5.0)

Answer = Outcome | Future[Verdict]
Handler = Callable[[Sequence[Delivery]], Sequence[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """One queue and who handles it.

    prefetch     -- deliveries this process holds at once: the backpressure valve
    batch        -- deliveries given to the handler at once; it gets what is there and never waits for more
    threads      -- how many batches are handled at the same time
    hold_seconds -- a delivery that got Hold for so long is acked; whoever needs it makes a new one
    """

    queue: str
    handler: Handler
    prefetch: int
    batch: int = 1
    threads: int = 1
    hold_seconds: float = 600.0


@dataclass(slots=True)
class _InHand:
    delivery: Delivery
    tag: int
    channel: Channel
    arrived: float
    subscription: "_Active"


class _Active:
    """A subscription at work."""

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.inbox: queue.SimpleQueue[_InHand | None] = queue.SimpleQueue()
        self.channel: Channel | None = None
        self.consumer_tag: str | None = None
        self.paused = False
        self.buried_in_a_row = 0
        self.braked = False


class Consumer:
    """Its own connection, and the threads that call the handlers.

    clear       -- notes that the follow-ups of final rows are confirmed (Tasks.clear_due); may raise Outage
    brake_after -- deliveries of one queue buried for a bug in a row after which that queue is left alone
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
    ) -> None:
        self._io = io
        self._publisher = publisher
        self._metrics = metrics
        self._clear = clear
        self._brake_after = brake_after
        self._active = {s.queue: _Active(s) for s in subscriptions}
        self._link = Link(io, urls, topology, name=f"{name} consumes", on_ready=self._connected, on_lost=self._lost)
        self._connection: SelectConnection | None = None
        self._stopping = threading.Event()
        self._paid: queue.SimpleQueue[tuple[Sequence[FollowUp], _InHand] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._in_hand = 0
        self._draining = False

    @property
    def problems(self) -> list[str]:
        """Why this consumer is not ready; empty when it is. A paused queue is no problem, a braked one is."""
        found = [] if self._link.is_ready else ["not connected"]
        for name, active in self._active.items():
            if active.braked:
                found.append(f"{name}: stopped after {self._brake_after} bugs in a row")
            elif self._link.is_ready and not active.paused and active.consumer_tag is None:
                found.append(f"{name}: not consuming")
        return found

    @property
    def in_hand(self) -> int:
        return self._in_hand

    def start(self) -> None:
        self._io.run(self._link.open)
        for active in self._active.values():
            for number in range(active.subscription.threads):
                self._thread(f"{active.subscription.queue}-{number}", partial(self._work, active))
        self._thread("closer", self._close_debts)

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
        self._io.run(self._cancel_all)
        for active in self._active.values():
            for _ in range(active.subscription.threads):
                active.inbox.put(None)
        deadline = time.monotonic() + within_seconds
        for thread in self._threads[:-1]:  # the handlers; the closer comes last, it acks what they leave
            thread.join(max(0.1, deadline - time.monotonic()))
        settled = threading.Event()
        self._io.run(settled.set)  # behind everything the handlers had the I/O thread do
        settled.wait(1.0)
        while self._in_hand > 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        self._paid.put(None)
        self._threads[-1].join(max(0.1, deadline - time.monotonic()))
        return self._in_hand <= 0

    def close(self) -> None:
        """On the I/O thread. Unacked deliveries go back to their queues."""
        self._link.close()

    @property
    def is_closed(self) -> bool:
        return self._link.is_closed

    # --- the I/O thread -------------------------------------------------------------------------------------------

    def _connected(self, connection: SelectConnection) -> None:
        self._connection = connection
        for active in self._active.values():
            self._open_channel(active)

    def _lost(self) -> None:
        self._connection = None
        for active in self._active.values():
            active.channel = None
            active.consumer_tag = None

    def _open_channel(self, active: _Active) -> None:
        if self._connection is None or active.paused or active.braked or self._draining:
            return

        def opened(channel: Channel) -> None:
            active.channel = channel
            channel.add_on_close_callback(lambda _, why: self._channel_closed(active, channel, why))
            channel.add_on_cancel_callback(lambda _: self._link.fail(f"{active.subscription.queue} was deleted"))
            channel.basic_qos(prefetch_count=active.subscription.prefetch, callback=lambda _: self._consume(active))

        self._connection.channel(on_open_callback=opened)

    def _consume(self, active: _Active) -> None:
        if active.channel is None or not active.channel.is_open or active.consumer_tag is not None:
            return
        if active.paused or active.braked or self._draining:
            return
        active.consumer_tag = active.channel.basic_consume(
            active.subscription.queue,
            lambda channel, method, properties, body: self._arrived(active, channel, method, properties, body),
        )

    def _channel_closed(self, active: _Active, channel: Channel, why: BaseException) -> None:
        if active.channel is channel:
            active.channel = None
            active.consumer_tag = None
            if self._link.is_ready and not self._draining:
                self._link.fail(f"{active.subscription.queue}: {why}")

    def _set_paused(self, active: _Active, *, paused: bool) -> None:
        if active.paused == paused:
            return
        active.paused = paused
        log.info("queue paused" if paused else "queue resumed", extra={"queue": active.subscription.queue})
        if paused:
            self._cancel(active)
        elif active.channel is not None and active.channel.is_open:
            self._consume(active)
        else:
            self._open_channel(active)

    def _cancel(self, active: _Active) -> None:
        if active.channel is not None and active.channel.is_open and active.consumer_tag is not None:
            active.channel.basic_cancel(active.consumer_tag)
        active.consumer_tag = None

    def _cancel_all(self) -> None:
        for active in self._active.values():
            self._cancel(active)

    def _arrived(self, active: _Active, channel: Channel, method: Any, properties: Any, body: bytes) -> None:
        delivery = Delivery(
            queue=active.subscription.queue,
            body=body,
            type=properties.type,
            message_id=properties.message_id,
            correlation_id=properties.correlation_id,
            headers=properties.headers or {},
            redelivered=method.redelivered,
        )
        if method.redelivered:
            self._metrics.count("message_redeliveries_total", queue=delivery.queue)
        active.inbox.put(_InHand(delivery, method.delivery_tag, channel, time.monotonic(), active))

    def _carry_out(self, settled: Sequence[tuple[_InHand, Verdict]]) -> None:
        for in_hand, verdict in settled:
            messages = list(verdict.then)
            if isinstance(verdict, DeadLetter):
                messages.append(_letter(in_hand.delivery, verdict))
            result = "dead_lettered" if isinstance(verdict, DeadLetter) else "acked"
            self._metrics.count("messages_total", queue=in_hand.delivery.queue, result=result)
            if messages:
                self._publisher.publish_now(
                    messages, partial(self._confirmed, in_hand, verdict), partial(self._unpublishable, in_hand, verdict)
                )
            else:
                self._confirmed(in_hand, verdict)

    def _confirmed(self, in_hand: _InHand, verdict: Verdict) -> None:
        if verdict.follow_up_of:
            self._paid.put((verdict.follow_up_of, in_hand))
        else:
            self._ack(in_hand)

    def _unpublishable(self, in_hand: _InHand, verdict: Verdict, error: BaseException) -> None:
        """A follow-up that AMQP cannot carry is a bug: the delivery is buried, and the row's due_at tries again."""
        if isinstance(error, Outage) or (isinstance(verdict, DeadLetter) and verdict.reason is Reason.BUG):
            return  # not acked: it comes again after the next start
        self._settle(in_hand.subscription, [(in_hand, _buried(in_hand.delivery, Bug(_trace(error))))])

    def _ack(self, in_hand: _InHand) -> None:
        self._in_hand -= 1
        # A tag belongs to the channel that delivered it; after a reconnect the message simply comes again.
        if in_hand.channel.is_open:
            in_hand.channel.basic_ack(in_hand.tag)

    def _ack_all(self, batch: Sequence[_InHand]) -> None:
        for in_hand in batch:
            self._ack(in_hand)

    # --- handler threads ------------------------------------------------------------------------------------------

    def _thread(self, name: str, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self, active: _Active) -> None:
        held: list[_InHand] = []
        while True:
            batch = held + self._take(active, active.subscription.batch - len(held), wait=not held)
            if active.braked:
                self._io.run(partial(self._give_back, batch, len(held)))
                batch, held = [], []
            # What a lost connection had delivered is void: it comes again, so nothing may be begun for it here.
            void = sum(not in_hand.channel.is_open for in_hand in held)
            held = [in_hand for in_hand in held if in_hand.channel.is_open]
            batch = [in_hand for in_hand in batch if in_hand.channel.is_open]
            self._io.run(partial(self._forget, void))
            if self._stopping.is_set():
                # Held and untouched deliveries go back when the connection closes; nothing was begun for them.
                self._io.run(partial(self._forget, len(held)))
                return
            fresh = len(batch) - len(held)
            self._io.run(partial(self._forget, -fresh))
            try:
                held = self._handle(active, batch)
            except Outage:
                held = batch  # the worker is stopping, see _answers
            if held:
                self._stopping.wait(_HOLD_SECONDS)

    def _forget(self, count: int) -> None:
        self._in_hand -= count

    def _give_back(self, batch: Sequence[_InHand], begun: int) -> None:
        """On the I/O thread: deliveries this process will not handle go back to their queue at once."""
        self._forget(begun)
        for in_hand in batch:
            if in_hand.channel.is_open:
                in_hand.channel.basic_nack(in_hand.tag)

    def _take(self, active: _Active, most: int, *, wait: bool) -> list[_InHand]:
        """What is there, up to `most`; waits only for the first, and not even for that when something is held."""
        batch: list[_InHand] = []
        while len(batch) < most:
            try:
                item = active.inbox.get(block=wait and not batch)
            except queue.Empty:
                break
            if item is None:
                break
            batch.append(item)
        return batch

    def _handle(self, active: _Active, batch: list[_InHand]) -> list[_InHand]:
        """Have the batch decided; returns what must stay in hand."""
        if not batch:
            return []
        held: list[_InHand] = []
        settled: list[tuple[_InHand, Verdict]] = []
        for in_hand, answer in zip(batch, self._answers(active, batch), strict=True):
            if isinstance(answer, Hold):
                if time.monotonic() - in_hand.arrived < active.subscription.hold_seconds:
                    held.append(in_hand)
                else:
                    settled.append((in_hand, Done()))
            elif isinstance(answer, Future):
                answer.add_done_callback(partial(self._later, active, in_hand))
            else:
                settled.append((in_hand, answer))
        self._settle(active, settled)
        return held

    def _answers(self, active: _Active, batch: Sequence[_InHand]) -> Sequence[Answer]:
        deliveries = [in_hand.delivery for in_hand in batch]
        outages = 0
        while True:
            try:
                if len(batch) == 1:
                    found = tried(lambda _: self._ask(active, deliveries), self._stopping.wait)
                    return [_buried(deliveries[0], found)] if isinstance(found, Bug) else found
                return self._ask(active, deliveries)
            except Outage as error:
                if self._stopping.is_set():
                    raise  # not acked: the deliveries come again elsewhere
                outages += 1
                wait = random.uniform(_OUTAGE_SECONDS[0], min(_OUTAGE_SECONDS[1], 0.2 * 2 ** min(outages, 6)))
                log.warning("outage, deliveries held", extra={"queue": deliveries[0].queue, "why": str(error)})
                self._stopping.wait(wait)
            except Exception:  # one of them is poison; alone it is tried again and then buried, its neighbours are not
                log.exception("batch taken apart", extra={"queue": deliveries[0].queue, "deliveries": len(batch)})
                return [answer for in_hand in batch for answer in self._answers(active, [in_hand])]

    def _ask(self, active: _Active, deliveries: Sequence[Delivery]) -> Sequence[Answer]:
        answers = active.subscription.handler(deliveries)
        if len(answers) != len(deliveries):
            raise RuntimeError(f"{len(answers)} answers for {len(deliveries)} deliveries")
        return answers

    def _later(self, active: _Active, in_hand: _InHand, future: Future[Verdict]) -> None:
        error = future.exception()
        verdict = future.result() if error is None else _buried(in_hand.delivery, Bug(_trace(error)))
        self._settle(active, [(in_hand, verdict)])

    def _settle(self, active: _Active, settled: Sequence[tuple[_InHand, Verdict]]) -> None:
        for _, verdict in settled:
            buried = isinstance(verdict, DeadLetter) and verdict.reason is Reason.BUG
            active.buried_in_a_row = active.buried_in_a_row + 1 if buried else 0
        if active.buried_in_a_row >= self._brake_after and not active.braked:
            active.braked = True
            log.error("queue left alone: every delivery ends in a bug", extra={"queue": active.subscription.queue})
            self._io.run(lambda: self._cancel(active))
        if settled:
            self._io.run(lambda: self._carry_out(settled))

    def _close_debts(self) -> None:
        """Clears due_at of final rows whose follow-ups are confirmed, as many at once as there are, then acks."""
        while True:
            item = self._paid.get()
            batch: list[tuple[Sequence[FollowUp], _InHand]] = []
            while item is not None:
                batch.append(item)
                try:
                    item = self._paid.get_nowait()
                except queue.Empty:
                    break
            if batch and self._clear_held([f for paid, _ in batch for f in paid]):
                self._io.run(partial(self._ack_all, [in_hand for _, in_hand in batch]))
            elif batch:
                self._io.run(partial(self._forget, len(batch)))
            if item is None:
                return

    def _clear_held(self, paid: Sequence[FollowUp]) -> bool:
        while True:
            try:
                self._clear(paid)
            except Outage as error:
                log.warning("outage, follow-ups held", extra={"rows": len(paid), "why": str(error)})
                if self._stopping.wait(1.0):
                    return False  # not acked: the deliveries come again and the follow-ups leave once more
            except Exception:  # this thread must not die of it; the rows stay due and their follow-ups leave once more
                log.exception("follow-ups not cleared", extra={"rows": len(paid)})
                return True
            else:
                return True


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-1500:]


def _buried(delivery: Delivery, bug: Bug) -> DeadLetter:
    return DeadLetter(reason=Reason.BUG, detail=bug.trace, stage=stage_of(delivery.queue))


def _letter(delivery: Delivery, verdict: DeadLetter) -> Message:
    """The delivery's own body on its way to the dead queue; no x- header goes along."""
    return Message(
        routing_key=dead_queue(Stage(verdict.stage)),
        type=delivery.type or DEAD_LETTER,
        body=delivery.body,
        message_id=delivery.message_id or str(uuid.uuid4()),
        correlation_id=delivery.correlation_id,
        headers=dead_letter_headers(
            reason=verdict.reason,
            stage=verdict.stage,
            detail=verdict.detail,
            task_id=verdict.task_id,
            attempt=verdict.attempt,
        )
        | {name: value for name, value in delivery.headers.items() if name == "traceparent"},
    )
