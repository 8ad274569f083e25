"""How many pixels this process decodes at a time: pictures come in many threads, and all of them share one memory."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final


class Room:
    """Room for `most` pixels. One picture that has more of them is decoded alone."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0
        self._next = threading.Lock()  # held by who waits: small pictures do not pass by a large one for ever
        self._freed = threading.Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Waits for room."""
        with self._next, self._freed:
            self._freed.wait_for(lambda: not self._taken or self._taken + pixels <= self._most)
            self._taken += pixels
        try:
            yield
        finally:
            with self._freed:
                self._taken -= pixels
                self._freed.notify_all()


#: A photograph of a telephone has 12 to 50 million. Re-encoding one costs up to 7 bytes a pixel, so with this many all
#: threads together stay below half a gigabyte.
ROOM: Final = Room(50_000_000)
