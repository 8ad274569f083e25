"""A process's whole dealing with RabbitMQ: one I/O thread, a publishing connection, and a consuming one if wanted."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final

from shared.broker.connection import IOThread
from shared.broker.consumer import Consumer, Subscription
from shared.broker.deliveries import LONG_OUTAGE_SECONDS
from shared.broker.publisher import Counter, Publisher
from shared.broker.topology import Topology
from shared.domain.messages import Message
from shared.domain.outcome import FollowUp

#: How long a broker has to answer a goodbye.
_CLOSE_SECONDS: Final = 2.0


class Broker:
    """Start it once, stop it once. It reconnects by itself; nothing it offers raises because the broker is away.

    tick -- runs on the I/O thread about every second while all threads live: the proof behind the liveness stamp
    """

    def __init__(
        self,
        urls: Sequence[str],
        topology: Topology,
        *,
        name: str,
        metrics: Counter,
        subscriptions: Sequence[Subscription] = (),
        clear: Callable[[Sequence[FollowUp]], None] = lambda _: None,
        brake_after: int = 50,
        long_outage_seconds: float = LONG_OUTAGE_SECONDS,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self._io = IOThread(f"{name}-amqp")
        self._tick = tick
        self.publisher = Publisher(self._io, urls, topology, name=name, metrics=metrics)
        self.consumer = (
            Consumer(
                self._io,
                urls,
                topology,
                subscriptions,
                self.publisher,
                name=name,
                metrics=metrics,
                clear=clear,
                brake_after=brake_after,
                long_outage_seconds=long_outage_seconds,
            )
            if subscriptions
            else None
        )

    def start(self) -> None:
        self._io.start()
        self._io.run(self.publisher.open)
        self._io.run(self._turn)
        if self.consumer is not None:
            self.consumer.start()

    def publish(self, messages: Sequence[Message]) -> "Future[None]":
        """See Publisher.publish."""
        return self.publisher.publish(messages)

    @property
    def problems(self) -> list[str]:
        """Why this process cannot work with the broker now; empty when it can."""
        found = [] if self.publisher.is_ready else ["blocked" if self.publisher.is_blocked else "cannot publish"]
        return found + (self.consumer.problems if self.consumer is not None else [])

    def stop(self, drain_seconds: float = 0.0) -> bool:
        """Finish what is in hand, within the limit, and leave; True when nothing was left unfinished."""
        finished = self.consumer.drain(drain_seconds) if self.consumer is not None else True

        def leave() -> None:
            if self.consumer is not None:
                self.consumer.close()
            self.publisher.close()
            self._leave(time.monotonic() + _CLOSE_SECONDS)

        self._io.run(leave)
        self._io.join(_CLOSE_SECONDS + 1.0)
        return finished

    def _leave(self, at_last: float) -> None:
        """End the loop once the connections are closed, or are not answering."""
        closed = self.publisher.is_closed and (self.consumer is None or self.consumer.is_closed)
        if closed or time.monotonic() > at_last:
            self._io.stop()
        else:
            self._io.later(0.02, lambda: self._leave(at_last))

    def _turn(self) -> None:
        self._io.later(1.0, self._turn)  # first: a tick that fails is not the last
        if self.consumer is None or self.consumer.is_whole:
            self._tick()
