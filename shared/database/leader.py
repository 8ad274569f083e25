"""One process of several does a thing: session advisory locks of PostgreSQL, held by one connection."""

import threading
import time
from typing import Final

import sqlalchemy as sa

from shared.database.engine import translated
from shared.domain.errors import DatabaseAway

#: First half of the lock's key; keeps these locks apart from everybody else's in the same database.
_SPACE: Final = 7224
#: How long an answer is believed before the connection is asked again.
_BELIEVED_SECONDS: Final = 2.0


class Leader:
    """Locks by name, all lost together when the connection goes. For hints only: a leader that hangs still leads."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._connection: sa.Connection | None = None
        self._held: dict[str, float] = {}

    def leads(self, name: str) -> bool:
        """Whether this process has the lock, taking it when nobody has. Raises DatabaseAway: it has none now."""
        with self._lock:
            if time.monotonic() - self._held.get(name, -_BELIEVED_SECONDS) < _BELIEVED_SECONDS:
                return True
            try:
                with translated():
                    if self._ask(name):
                        self._held[name] = time.monotonic()
                        return True
            except DatabaseAway:
                self._drop()
                raise
            return False

    def close(self) -> None:
        with self._lock:
            self._drop()

    def _ask(self, name: str) -> bool:
        if self._connection is None:
            self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        if name in self._held:
            self._connection.execute(sa.text("select 1"))  # still there, so the lock is too
            return True
        statement = sa.text("select pg_try_advisory_lock(:space, hashtext(:name))")
        return bool(self._connection.execute(statement, {"space": _SPACE, "name": name}).scalar_one())

    def _drop(self) -> None:
        self._held.clear()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()  # closes the session, which frees the locks; back in the pool it would keep them
            connection.close()
