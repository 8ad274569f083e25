"""One way to reach PostgreSQL, and the one place where its driver's exceptions become ours."""

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol, TypeVar

import psycopg2
import sqlalchemy as sa

from shared.database.prepared import prepare_on
from shared.database.silence import bounded
from shared.domain.errors import DatabaseAway
from shared.domain.fit import OVERFLOW

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Deadlock, serialization failure, lock not available: the transaction is gone, the same one may work now.
_AGAIN: Final = {"40P01": "deadlock", "40001": "serialization", "55P03": "lock_timeout"}
#: A write in a read-only transaction: after a failover the connection still leads to the old primary.
_READ_ONLY: Final = "25006"
#: Classes that say "the server is away or going": connection, insufficient resources, operator intervention, I/O.
_AWAY: Final = ("08", "53", "57", "58", _READ_ONLY)
_TRIES: Final = 8
#: The server's own word that a statement took too long must have time to arrive.
_ANSWER_SECONDS: Final = 5.0
#: What PostgreSQL calls our connections.
APPLICATION_NAME: Final = "darkroom"


class Anew(Exception):
    """Raised inside a transaction whose next lock would come out of order: it lets go of all and is begun anew."""


class Counter(Protocol):
    """What this module needs of the metrics."""

    def count(self, name: str, amount: float = 1, /, **labels: str) -> None: ...


def connect(
    url: str,
    *,
    pool_size: int = 5,
    statement_timeout_seconds: float = 30.0,
    lock_timeout_seconds: float = 20.0,
    metrics: Counter | None = None,
    connect_timeout_seconds: int = 5,
    must_take_writes: bool = True,
) -> sa.Engine:
    """An engine with one connection per thread that will use it; nothing is opened yet.

    A statement that hangs longer than its limit is ended by the server, and so is a transaction whose client says
    nothing for as long: its locks would stop everybody else. A host that vanished is noticed by TCP keep-alives after
    about 25 s, on both sides; whatever stays silent all the same is given up a little after the limit (silence.py).
    Without these a worker would wait for ever. Transactions are READ COMMITTED whatever the role or the database says:
    under any other level what is counted after a lock was waited for would be older than the lock. Of several hosts in
    the URL (`?host=a:5432&host=b:5432`) the one that takes writes is used; any of them without `must_take_writes`.
    """
    limit = int(statement_timeout_seconds * 1000)
    server = {
        "timezone": "UTC",
        "default_transaction_isolation": r"read\ committed",  # libpq splits its options at plain spaces
        "statement_timeout": limit,
        "idle_in_transaction_session_timeout": limit,
        "lock_timeout": int(lock_timeout_seconds * 1000),
        # Compiling the question of who is to blame for dead letters took 130 of its 150 ms; all of ours are short.
        "jit": "off",
        # Whatever a prepared statement is given: its plan depends on no value.
        "plan_cache_mode": "force_generic_plan",
        "tcp_keepalives_idle": 10,
        "tcp_keepalives_interval": 5,
        "tcp_keepalives_count": 3,
    }
    engine = sa.create_engine(
        sa.make_url(url).set(drivername="postgresql+psycopg2"),
        pool_size=pool_size,
        max_overflow=OVERFLOW,
        pool_timeout=20,
        pool_use_lifo=True,
        pool_pre_ping=False,  # saves a round trip; a dead connection surfaces as DatabaseAway and is tried again
        connect_args={
            "connect_timeout": connect_timeout_seconds,
            "application_name": APPLICATION_NAME,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 25_000,
            # A standby refuses at once; told at connect, no round trip (>= 14).
            "target_session_attrs": "read-write" if must_take_writes else "any",
            "options": " ".join(f"-c {name}={value}" for name, value in server.items()),
            **bounded(statement_timeout_seconds + _ANSWER_SECONDS if statement_timeout_seconds else None),
        },
    )
    sa.event.listen(engine, "handle_error", _leave_a_standby)
    prepare_on(engine)
    if metrics is not None:

        def counted(context: sa.engine.ExceptionContext) -> None:
            metrics.count("database_errors_total", error_class=_class_of(context.original_exception))

        sa.event.listen(engine, "handle_error", counted)
    return engine


def _leave_a_standby(context: sa.engine.ExceptionContext) -> None:
    """A server that became read-only stays so for its connections: drop them all, the next one finds the primary."""
    if _sqlstate(context.original_exception) == _READ_ONLY:
        context.is_disconnect = True


def _sqlstate(error: BaseException | None) -> str:
    return getattr(error, "pgcode", None) or ""


def _class_of(error: BaseException | None) -> str:
    """One of catalog.DATABASE_ERRORS. A connection that broke has no SQLSTATE."""
    state = _sqlstate(error)
    if state in _AGAIN:
        return _AGAIN[state]
    if state.startswith(_AWAY) or (
        not state and isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError)
    ):
        return "disconnect"
    return "other"


@contextmanager
def translated() -> Iterator[None]:
    """Raises DatabaseAway where the driver says the server is away; every other database error is a bug and stays."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        state = _sqlstate(error.orig)
        if error.connection_invalidated or state.startswith(_AWAY):
            raise DatabaseAway(str(error.orig).strip()) from error
        if not state and isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError):
            raise DatabaseAway(str(error.orig).strip()) from error
        raise
    except sa.exc.TimeoutError as error:  # no connection came free in pool_timeout
        raise DatabaseAway(str(error)) from error


def in_transaction(engine: sa.Engine, work: Callable[[sa.Connection], T]) -> T:
    """Run `work` in one transaction and commit it; repeat it when the server (deadlock, serialization) or Anew asks.

    `work` may run several times, so it must not do anything but SQL. Raises DatabaseAway: the commit may have worked,
    or a repetition was asked for every time. Neither is the fault of what the caller holds.
    """
    for left in reversed(range(_TRIES)):
        try:
            with translated(), engine.begin() as connection:
                return work(connection)
        except sa.exc.DBAPIError as error:
            if _sqlstate(error.orig) not in _AGAIN:
                raise
            if not left:
                raise DatabaseAway(str(error.orig).strip()) from error
            log.warning("transaction repeated", extra={"sqlstate": _sqlstate(error.orig)})
            time.sleep(random.uniform(0, 0.05 * (_TRIES - left)))
        except Anew as error:
            if not left:
                raise DatabaseAway(str(error)) from error
            log.info("transaction begun anew", extra={"why": str(error)})
    raise AssertionError("unreachable: the last try returns or raises")
