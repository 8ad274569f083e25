"""Orders leave for the broker, and count as published when it has confirmed them."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import Final, Protocol

from shared.domain.errors import BrokerAway
from shared.domain.messages import Message

#: Messages per confirm that somebody waits for; several batches are on the wire at once.
BATCH: Final = 200
_BATCHES_ON_THE_WIRE: Final = 4


class Publisher(Protocol):
    """The broker, as far as this service needs it."""

    def publish(self, messages: Sequence[Message]) -> "Future[None]":
        """Done once all are confirmed; it waits through outages until it is cancelled."""


class NotConfirmed(BrokerAway):
    """The broker did not confirm in time. Publishing the same orders again is safe: their keys are known."""

    def __init__(self, confirmed: int = 0) -> None:
        super().__init__("the broker did not confirm in time")
        self.confirmed = confirmed


async def publish_one(publisher: Publisher, message: Message, timeout_seconds: float) -> None:
    """Returns once the broker has it. Raises BrokerAway; a message on the wire may arrive all the same."""
    future = publisher.publish([message])
    try:
        async with asyncio.timeout(timeout_seconds):
            await asyncio.wrap_future(future)
    except TimeoutError:
        future.cancel()
        raise NotConfirmed from None


def publish_all(
    publisher: Publisher,
    messages: Iterable[Message],
    *,
    timeout_seconds: float,
    confirmed: Callable[[int], object] = lambda _: None,
) -> int:
    """Publish in batches, in order, and return how many; `confirmed` is told the size of each confirmed batch.

    timeout_seconds -- longest time without any confirm

    Raises NotConfirmed, with the number that the broker has for sure.
    """
    waiting: deque[tuple[int, Future[None]]] = deque()
    done = 0

    def settle() -> int:
        size, future = waiting[0]
        try:
            future.result(timeout_seconds)
        except (TimeoutError, BrokerAway):
            raise NotConfirmed(done) from None
        waiting.popleft()
        confirmed(size)
        return size

    try:
        for batch in _batches(messages):
            waiting.append((len(batch), publisher.publish(batch)))
            if len(waiting) == _BATCHES_ON_THE_WIRE:
                done += settle()
        while waiting:
            done += settle()
    finally:
        for _, future in waiting:
            future.cancel()
    return done


def _batches(messages: Iterable[Message]) -> Iterator[list[Message]]:
    rest = iter(messages)
    while batch := list(islice(rest, BATCH)):
        yield batch
