"""The threads of one subscription: they give what has arrived to the handler and pass on what it decides."""

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final

from shared.broker import crash_points
from shared.broker.deliveries import Active, Answer, Hand, InHand, Settled
from shared.broker.letters import buried, trace_of
from shared.domain.errors import Outage
from shared.domain.messages import Delivery
from shared.domain.outcome import Done, Hold, Verdict
from shared.domain.retry import Bug, tried
from shared.observe.crash import crash_point

log = logging.getLogger(__name__)

#: Until what is held is decided again: soon after some of it had its turn, then twice as long each time.
_HOLD_SECONDS: Final = (0.02, 0.2)
_OUTAGE_SECONDS: Final = (0.2, 5.0)


class Handling:
    """settle    -- takes the verdicts; from any thread
    give_back -- takes deliveries this process will not handle; from any thread
    outlast   -- told 1 by a thread whose outage has become long, and -1 once that is over; from any thread
    stopping  -- once set, `work` returns; what is held or untouched is left to the broker
    """

    def __init__(
        self,
        active: Active,
        hand: Hand,
        stopping: threading.Event,
        *,
        settle: Callable[[Active, Settled], None],
        give_back: Callable[[Active, Sequence[InHand]], None],
        outlast: Callable[[Active, int], None],
        long_outage_seconds: float,
    ) -> None:
        self._active = active
        self._hand = hand
        self._stopping = stopping
        self._settle = settle
        self._give_back = give_back
        self._outlast = outlast
        self._long_outage = long_outage_seconds

    def work(self) -> None:
        """One thread's whole life; a subscription may have several."""
        held: list[InHand] = []
        pause = _HOLD_SECONDS[0]
        while True:
            batch = held + self._take(self._active.subscription.batch - len(held), wait=not held)
            if self._active.braked is not None:
                self._give_back(self._active, batch)
                batch = []
            # What a lost connection had delivered is void: it comes again, so nothing may be begun for it here.
            self._hand.finish(in_hand for in_hand in held if not in_hand.channel.is_open)
            batch = [in_hand for in_hand in batch if in_hand.channel.is_open]
            if self._stopping.is_set():
                # Held and untouched deliveries go back when the connection closes; nothing was begun for them.
                self._hand.finish(batch)
                return
            self._hand.begin(batch)
            try:
                held = self._handle(batch)
            except Outage:
                held = batch  # the worker is stopping, see _answers
            if not held or len(held) < len(batch):
                pause = _HOLD_SECONDS[0]
            if held:
                self._stopping.wait(pause)
                pause = min(2 * pause, _HOLD_SECONDS[1])

    def _take(self, most: int, *, wait: bool) -> list[InHand]:
        """What is there, up to `most`; waits only for the first, and not even for that when something is held."""
        batch: list[InHand] = []
        while len(batch) < most:
            try:
                item = self._active.inbox.get(block=wait and not batch)
            except queue.Empty:
                break
            if item is None:
                break
            batch.append(item)
        return batch

    def _handle(self, batch: list[InHand]) -> list[InHand]:
        """Have the batch decided; returns what must stay in hand."""
        if not batch:
            return []
        held: list[InHand] = []
        settled: list[tuple[InHand, Verdict]] = []
        for in_hand, answer in zip(batch, self._answers(batch), strict=True):
            if isinstance(answer, Hold):
                if time.monotonic() - in_hand.arrived < self._active.subscription.hold_seconds:
                    held.append(in_hand)
                else:
                    settled.append((in_hand, Done()))
            elif isinstance(answer, Future):
                answer.add_done_callback(partial(self._later, in_hand))
            else:
                settled.append((in_hand, answer))
        self._settle(self._active, settled)
        return held

    def _answers(self, batch: Sequence[InHand]) -> Sequence[Answer]:
        began = time.monotonic()
        outages, is_long = 0, False
        try:
            while True:
                try:
                    return self._answers_now(batch)
                except Outage as error:
                    if self._stopping.is_set():
                        raise  # not acked: the deliveries come again elsewhere
                    queue_name = self._active.subscription.queue
                    log.warning("outage, deliveries held", extra={"queue": queue_name, "why": str(error)})
                outages += 1
                if not is_long and time.monotonic() - began > self._long_outage:
                    is_long = True
                    self._outlast(self._active, 1)
                self._stopping.wait(
                    random.uniform(_OUTAGE_SECONDS[0], min(_OUTAGE_SECONDS[1], 0.2 * 2 ** min(outages, 6)))
                )
        finally:
            if is_long:
                self._outlast(self._active, -1)

    def _answers_now(self, batch: Sequence[InHand]) -> Sequence[Answer]:
        """Raises Outage."""
        deliveries = [in_hand.delivery for in_hand in batch]
        if len(batch) == 1:
            found = tried(lambda _: self._ask(deliveries), self._stopping.wait)
            return [buried(deliveries[0], found.trace)] if isinstance(found, Bug) else found
        try:
            return self._ask(deliveries)
        except Outage:
            raise
        except Exception:  # one of them is poison; alone it is tried again and then buried, its neighbours are not
            log.exception("batch taken apart", extra={"queue": deliveries[0].queue, "deliveries": len(batch)})
            return [answer for in_hand in batch for answer in self._answers([in_hand])]

    def _ask(self, deliveries: Sequence[Delivery]) -> Sequence[Answer]:
        crash_point(crash_points.delivered, self._active.subscription.queue)
        answers = self._active.subscription.handler(deliveries)
        if len(answers) != len(deliveries):
            raise RuntimeError(f"{len(answers)} answers for {len(deliveries)} deliveries")
        return answers

    def _later(self, in_hand: InHand, future: Future[Verdict]) -> None:
        error = future.exception()
        verdict = future.result() if error is None else buried(in_hand.delivery, trace_of(error))
        self._settle(self._active, [(in_hand, verdict)])
