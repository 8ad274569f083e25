"""Notices a consumer that the broker has forgotten: its connection answers heartbeats, and no delivery ever comes."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from shared.broker.connection import IOThread, Link
from shared.broker.deliveries import Active, Hand

#: Between two looks at a queue. A consumer with room gets what is ready at once.
_LOOK_SECONDS: Final = 20.0
#: Looks in a row at which the broker kept messages back, or did not answer, before the connection is made again. Twice
#: as many each time that was of no use: every new connection costs what is in hand one of its deliveries.
_LOOKS: Final = 3
_MOST_LOOKS: Final = 24


@dataclass(slots=True)
class _Seen:
    """arrived -- deliveries until the last look; in_vain -- looks in a row since then; allowed -- how many may be"""

    arrived: int = 0
    in_vain: int = 0
    allowed: int = _LOOKS


class Listening:
    """Connections like that, for publishing, were seen with RabbitMQ 3.10 after the death of a cluster's leader.

    is_wanted -- whether this process wants deliveries of a queue now
    """

    def __init__(
        self, io: IOThread, link: Link, actives: Collection[Active], hand: Hand, is_wanted: Callable[[Active], bool]
    ) -> None:
        self._io = io
        self._link = link
        self._seen = [(active, _Seen()) for active in actives]
        self._hand = hand
        self._is_wanted = is_wanted

    def look(self) -> None:
        """On the I/O thread; from the first call on again and again."""
        self._io.later(_LOOK_SECONDS, self.look)
        for active, seen in self._seen:
            if active.arrived > seen.arrived:
                seen.arrived, seen.in_vain, seen.allowed = active.arrived, 0, _LOOKS
            if not self._link.open_seconds or not self._is_wanted(active) or self._has_work(active):
                seen.in_vain = 0
            elif seen.in_vain >= seen.allowed:
                seen.in_vain, seen.allowed = 0, min(2 * seen.allowed, _MOST_LOOKS)
                self._link.fail(
                    f"{active.subscription.queue}: messages are ready, or no answer is given, and none comes"
                )
                return
            else:
                seen.in_vain += 1  # until an answer says otherwise
                if active.channel is not None and active.channel.is_open:
                    active.channel.queue_declare(
                        active.subscription.queue, passive=True, callback=partial(_answered, seen)
                    )

    def _has_work(self, active: Active) -> bool:
        return not active.inbox.empty() or self._hand.holds(active)


def _answered(seen: _Seen, frame: Any) -> None:
    if frame.method.message_count == 0:
        seen.in_vain = 0
