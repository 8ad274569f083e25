"""Deliveries on their way through this process: which queues they come from, which of them are in hand."""

import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

from pika.channel import Channel

from shared.broker.tags import Tags
from shared.domain.messages import Delivery
from shared.domain.outcome import Outcome, Verdict

Answer = Outcome | Future[Verdict]
Handler = Callable[[Sequence[Delivery]], Sequence[Answer]]

#: An outage that lasts so long may outlast the broker's ack timeout (30 min). Then all in hand comes again, and counts:
#: a night of that would bury it, so nothing more is taken until the outage is over.
LONG_OUTAGE_SECONDS: Final = 60.0


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


@dataclass(slots=True, eq=False)
class InHand:
    """One delivery, and where it is acked: the tag is void on any other channel, whose `tags` are others too."""

    delivery: Delivery
    tag: int
    channel: Channel
    tags: Tags
    arrived: float
    active: "Active"


Settled = Sequence[tuple[InHand, Verdict]]


class Active:
    """A subscription at work.

    channel, tags, consumer_tag,
    cancelling, returning                        -- of the I/O thread; a consumer that is being cancelled keeps its tag
    returning                                    -- deliveries that go back once the broker sends no more
    arrived                                      -- deliveries so far; of the I/O thread
    outages                                      -- threads that have waited out an outage for long, and still do;
                                                    nothing more is taken meanwhile; of the I/O thread
    braked                                       -- why nothing more is taken until the next start; None while it is
    one_by_one                                   -- prefetch is 1, as it is from the start of the process until a
                                                    delivery comes that nobody had in hand before
    """

    def __init__(self, subscription: Subscription) -> None:
        self.subscription = subscription
        self.inbox: queue.SimpleQueue[InHand | None] = queue.SimpleQueue()
        self.channel: Channel | None = None
        self.tags = Tags()
        self.consumer_tag: str | None = None
        self.cancelling = False
        self.returning: list[InHand] = []
        self.arrived = 0
        self.paused = False
        self.outages = 0
        self.one_by_one = True
        self.bugs_in_a_row = 0
        self.braked: str | None = None

    @property
    def prefetch(self) -> int:
        return 1 if self.one_by_one else self.subscription.prefetch

    def forget_channel(self) -> None:
        self.channel = None
        self.consumer_tag = None
        self.cancelling = False
        self.returning.clear()


class Hand:
    """The deliveries that a handler was given and that are not finished yet. Thread-safe."""

    def __init__(self) -> None:
        self._begun: set[InHand] = set()
        self._lock = threading.Lock()

    def begin(self, batch: Iterable[InHand]) -> None:
        with self._lock:
            self._begun.update(batch)

    def finish(self, batch: Iterable[InHand]) -> None:
        """Acked, given back or void: nobody waits for these any more."""
        with self._lock:
            self._begun.difference_update(batch)

    def holds(self, active: Active) -> bool:
        """Whether any of these came through this subscription."""
        with self._lock:
            return any(in_hand.active is active for in_hand in self._begun)

    def __len__(self) -> int:
        return len(self._begun)
