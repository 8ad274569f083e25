"""Which deliveries of a channel one ack may cover."""

from collections.abc import Iterable


class Tags:
    """The delivery tags of one channel, which the broker counts from 1. Not thread-safe.

    An ack for several covers every tag up to its own. So it goes no further than to the first that is not acked yet,
    be it still in hand or one that never came to us; those behind it are acked one by one.
    """

    def __init__(self) -> None:
        self._acked_to = 0
        self._acked_beyond: set[int] = set()

    def ack(self, tags: Iterable[int]) -> list[tuple[int, bool]]:
        """The acks that these deliveries take, as (tag, multiple). Each tag once."""
        ordered = sorted(tags)
        self._acked_beyond.update(ordered)
        while self._acked_to + 1 in self._acked_beyond:
            self._acked_to += 1
            self._acked_beyond.remove(self._acked_to)
        together = [tag for tag in ordered if tag <= self._acked_to]
        alone = [(tag, False) for tag in ordered[len(together) :]]
        # Not `_acked_to`: the broker takes an ack only for a tag that is not acked yet.
        return [(together[-1], len(together) > 1), *alone] if together else alone
