"""Carries verdicts out: publish, confirm, clear what was owed, ack last. And stops a queue that only meets bugs."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from pika.channel import Channel

from shared.broker import crash_points
from shared.broker.connection import IOThread
from shared.broker.deliveries import Active, Hand, InHand, Settled
from shared.broker.letters import bare_letter, buried, letter, trace_of
from shared.broker.publisher import Counter, Publisher
from shared.broker.topology import buries_to
from shared.domain.errors import Outage
from shared.domain.outcome import DeadLetter, FollowUp, Verdict
from shared.domain.task import Reason
from shared.observe.crash import crash_point

log = logging.getLogger(__name__)

_CLEAR_AGAIN_SECONDS: Final = 1.0


class Settling:
    """brake       -- stops a queue for good and keeps the reason for operators; from any thread
    brake_after -- deliveries of one queue buried for a bug in a row after which it is stopped
    clear       -- notes that the follow-ups of final rows are confirmed; may raise Outage
    """

    def __init__(
        self,
        io: IOThread,
        publisher: Publisher,
        hand: Hand,
        stopping: threading.Event,
        *,
        metrics: Counter,
        clear: Callable[[Sequence[FollowUp]], None],
        brake: Callable[[Active, str], None],
        brake_after: int,
    ) -> None:
        self._io = io
        self._publisher = publisher
        self._hand = hand
        self._stopping = stopping
        self._metrics = metrics
        self._clear = clear
        self._brake = brake
        self._brake_after = brake_after
        self._to_ack: list[InHand] = []  # of the I/O thread
        self._paid: queue.SimpleQueue[tuple[Sequence[FollowUp], InHand] | None] = queue.SimpleQueue()

    def settle(self, active: Active, settled: Settled) -> None:
        """From any thread."""
        possible = []
        for in_hand, verdict in settled:
            active.bugs_in_a_row = active.bugs_in_a_row + 1 if _is_bug(verdict) else 0
            if isinstance(verdict, DeadLetter) and buries_to(active.subscription.queue) is None:
                self._hold(in_hand, verdict.detail)
            else:
                possible.append((in_hand, verdict))
        if active.bugs_in_a_row >= self._brake_after:
            self._brake(active, f"stopped after {self._brake_after} bugs in a row")
        if possible:
            crash_point(crash_points.decided, active.subscription.queue)
            self._io.run(partial(self._carry_out, possible))

    def close_debts(self) -> None:
        """A thread's whole life, until `no_more_debts`.

        Clears due_at of final rows whose follow-ups are confirmed, as many at once as there are, then acks.
        """
        while True:
            item = self._paid.get()
            batch: list[tuple[Sequence[FollowUp], InHand]] = []
            while item is not None:
                batch.append(item)
                try:
                    item = self._paid.get_nowait()
                except queue.Empty:
                    break
            in_hand = [in_hand for _, in_hand in batch]
            if batch and self._cleared([f for paid, _ in batch for f in paid]):
                self._io.run(partial(self._ack_all, in_hand))
            else:
                self._hand.finish(in_hand)
            if item is None:
                return

    def no_more_debts(self) -> None:
        self._paid.put(None)

    def _carry_out(self, settled: Settled) -> None:
        for in_hand, verdict in settled:
            messages = list(verdict.then)
            if isinstance(verdict, DeadLetter):
                messages.append(letter(in_hand.delivery, verdict))
            result = "dead_lettered" if isinstance(verdict, DeadLetter) else "acked"
            self._metrics.count("messages_total", queue=in_hand.delivery.queue, result=result)
            seconds = time.monotonic() - in_hand.arrived
            self._metrics.observe("message_handle_seconds", seconds, queue=in_hand.delivery.queue)
            if messages:
                self._publisher.publish_now(
                    messages, partial(self._confirmed, in_hand, verdict), partial(self._unpublishable, in_hand, verdict)
                )
            else:
                self._confirmed(in_hand, verdict)

    def _confirmed(self, in_hand: InHand, verdict: Verdict) -> None:
        if verdict.follow_up_of:
            self._paid.put((verdict.follow_up_of, in_hand))
        else:
            self._ack(in_hand)

    def _unpublishable(self, in_hand: InHand, verdict: Verdict, error: BaseException) -> None:
        """A follow-up nobody can carry is a bug: the delivery is buried, and the row's due_at tries again."""
        if isinstance(error, Outage):
            return  # not acked: it comes again after the next start
        if not _is_bug(verdict):
            self.settle(in_hand.active, [(in_hand, buried(in_hand.delivery, trace_of(error)))])
            return
        self._publisher.publish_now(
            [bare_letter(in_hand.delivery, error)],
            partial(self._ack, in_hand),
            lambda last: None if isinstance(last, Outage) else self._hold(in_hand, trace_of(last)),
        )

    def _hold(self, in_hand: InHand, why: str) -> None:
        """A delivery that can be neither finished nor buried: it stays unacked, for a person to look at.

        One from a dead queue would be buried in the very queue it came from, and a nack hands it out again at once.
        """
        self._hand.finish([in_hand])
        log.error("delivery cannot be buried", extra={"queue": in_hand.delivery.queue, "why": why})
        self._brake(in_hand.active, "stopped at a delivery that cannot be buried")

    def _ack(self, in_hand: InHand) -> None:
        """At the end of this turn of the loop, together with what else it finishes."""
        if not self._to_ack:
            self._io.loop.at_turn_end(self._send_acks)
        self._to_ack.append(in_hand)

    def _ack_all(self, batch: Sequence[InHand]) -> None:
        for in_hand in batch:
            self._ack(in_hand)

    def _send_acks(self) -> None:
        batch, self._to_ack = self._to_ack, []
        self._hand.finish(batch)
        by_channel: dict[Channel, list[InHand]] = {}
        for in_hand in batch:
            by_channel.setdefault(in_hand.channel, []).append(in_hand)
        for channel, together in by_channel.items():
            # A tag belongs to the channel that delivered it; after a reconnect the message simply comes again.
            if not channel.is_open:
                continue
            for in_hand in together:
                crash_point(crash_points.acking, in_hand.delivery.queue)
            for tag, multiple in together[0].tags.ack(in_hand.tag for in_hand in together):
                channel.basic_ack(tag, multiple)
            for in_hand in together:
                crash_point(crash_points.acked, in_hand.delivery.queue)

    def _cleared(self, paid: Sequence[FollowUp]) -> bool:
        while True:
            try:
                self._clear(paid)
            except Outage as error:
                log.warning("outage, follow-ups held", extra={"rows": len(paid), "why": str(error)})
                if self._stopping.wait(_CLEAR_AGAIN_SECONDS):
                    return False  # not acked: the deliveries come again and the follow-ups leave once more
            except Exception:  # this thread must not die of it; the rows stay due and their follow-ups leave once more
                log.exception("follow-ups not cleared", extra={"rows": len(paid)})
                return True
            else:
                return True


def _is_bug(verdict: Verdict) -> bool:
    return isinstance(verdict, DeadLetter) and verdict.reason is Reason.BUG
