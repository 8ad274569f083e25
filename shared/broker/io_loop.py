"""pika's loop, and a place in each of its turns for what many callbacks of that turn have in common."""

from collections import deque
from collections.abc import Callable

from pika.adapters.select_connection import IOLoop


class Loop(IOLoop):
    """A turn: the sockets that are ready, the callbacks that wait, the timers that are due, and then its end."""

    def __init__(self) -> None:
        super().__init__()
        self._at_end: deque[Callable[[], None]] = deque()

    def at_turn_end(self, work: Callable[[], None]) -> None:
        """Have `work` run at the end of this turn, and so what that asks for. On the loop's thread only."""
        self._at_end.append(work)

    def end_turn(self) -> None:
        """The loop does so by itself, unless an exception left it in the middle of a turn."""
        while self._at_end:
            self._at_end.popleft()()

    def process_timeouts(self) -> None:
        """pika's last step before it waits again."""
        super().process_timeouts()
        self.end_turn()
