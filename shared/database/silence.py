"""Gives up database calls that nobody answers: the driver itself would wait for ever.

The server ends a statement that takes too long, and TCP a connection whose host has vanished. A pooler or balancer in
between that holds the connection and has lost its other end defeats both.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from psycopg2 import InterfaceError
from psycopg2.extensions import connection, cursor

_LOOK_SECONDS: Final = 1.0


class _Watch:
    """Calls on their way, and one thread that ends the overdue ones. For all engines of the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[object, tuple[float, Any]] = {}
        self._thread: threading.Thread | None = None

    @contextmanager
    def over(self, used: "_Connection") -> Iterator[None]:
        if used.silence_seconds is None:
            yield
            return
        call = object()
        with self._lock:
            self._calls[call] = (time.monotonic() + used.silence_seconds, used)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="database-silence", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                del self._calls[call]

    def _run(self) -> None:
        while True:
            time.sleep(_LOOK_SECONDS)
            with self._lock:  # a call that is still in here has its connection open
                now = time.monotonic()
                for ends, used in self._calls.values():
                    if now > ends:
                        _hang_up(used)


_watch: Final = _Watch()


class _Connection(connection):  # type: ignore[misc]  # psycopg2 has no annotations
    silence_seconds: float | None = None

    def commit(self) -> None:
        with _watch.over(self):
            super().commit()

    def rollback(self) -> None:
        with _watch.over(self):
            super().rollback()


class _Cursor(cursor):  # type: ignore[misc]
    def execute(self, *args: Any, **kwargs: Any) -> None:
        with _watch.over(self.connection):
            super().execute(*args, **kwargs)

    def executemany(self, *args: Any, **kwargs: Any) -> None:
        with _watch.over(self.connection):
            super().executemany(*args, **kwargs)


def bounded(silence_seconds: float | None) -> dict[str, Callable[..., Any]]:
    """Arguments for psycopg2.connect: a call unanswered for so long fails as if the server had gone. None: never."""

    def connected(*args: Any) -> _Connection:
        made = _Connection(*args)
        made.silence_seconds = silence_seconds
        return made

    return {"connection_factory": connected, "cursor_factory": _Cursor}


def _hang_up(used: _Connection) -> None:
    """The driver's thread wakes up, finds the connection ended, and raises."""
    with suppress(OSError, InterfaceError):  # it has ended by itself
        end = socket.fromfd(used.fileno(), socket.AF_INET, socket.SOCK_STREAM)
        with end:
            end.shutdown(socket.SHUT_RDWR)
