"""What was seen when: each line goes to the terminal as it happens."""

import time

from rich.console import Console
from rich.markup import escape


class Timeline:
    """Seconds count from the first line. seen -- (seconds, who, what), in order"""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self.seen: list[tuple[float, str, str]] = []

    def say(self, who: str, what: str, at: float | None = None) -> None:
        """Add a line. at -- of the monotonic clock; None: now"""
        seconds = (time.monotonic() if at is None else at) - self._began
        self.seen.append((seconds, who, what))
        minutes, rest = divmod(int(seconds), 60)
        self._console.print(f"[dim]{minutes}:{rest:02}[/dim]  [bold]{who:<13}[/bold]{escape(what)}", soft_wrap=True)
