"""A server that takes no writes or does not answer: an outage that ends by itself, without a restart of ours."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest
import sqlalchemy as sa

from deploy.local import Stack
from shared.database.engine import connect, in_transaction
from shared.domain.errors import DatabaseAway
from shared.domain.task import Status, Task
from shared.observe import metrics
from shared.observe.catalog import DATABASE_ERRORS
from tests.factories import Rows
from tests.proxy import FaultProxy
from tests.servers import free_port


@pytest.fixture
def rows(database_url: str) -> Iterator[Rows]:
    rows = Rows(database_url)
    yield rows
    rows.close()


def make_read_only(rows: Rows, connections: int) -> None:
    """What connections to a primary that was demoted are: alive, and good for nothing but reading."""
    with ExitStack() as open_ones:
        for connection in [open_ones.enter_context(rows.engine.connect()) for _ in range(connections)]:
            connection.exec_driver_sql("set default_transaction_read_only = on")
            connection.commit()


def test_pooled_connections_to_a_server_that_became_read_only_are_left_after_one_outage(rows: Rows) -> None:
    make_read_only(rows, connections=3)

    with pytest.raises(DatabaseAway, match="read-only"):
        rows.pending()

    assert [rows.pending().version for _ in range(3)] == [1, 1, 1]


def test_a_server_that_takes_no_writes_is_away_until_it_does(rows: Rows, database_url: str, stack: Stack) -> None:
    name = sa.make_url(database_url).database
    stack.database.sql(f"alter database {name} set default_transaction_read_only = on")
    with pytest.raises(DatabaseAway, match="read-only"):
        rows.pending()

    stack.database.sql(f"alter database {name} set default_transaction_read_only = off")

    assert rows.pending().version == 1


def test_of_several_hosts_the_one_that_takes_writes_is_used(database_url: str) -> None:
    url = sa.make_url(database_url)
    hosts = (f"127.0.0.1:{free_port()}", f"{url.host}:{url.port}")
    several = url.set(host=None, port=None).update_query_dict({"host": hosts})
    engine = connect(several.render_as_string(hide_password=False))

    assert in_transaction(engine, lambda c: c.execute(sa.text("select 1")).scalar_one()) == 1
    engine.dispose()


def test_transactions_see_what_others_committed_whatever_the_database_says(database_url: str, stack: Stack) -> None:
    """Slots are counted after a lock was waited for, and claims look for the rows that made them step aside."""
    name = sa.make_url(database_url).database
    stack.database.sql(f"alter database {name} set default_transaction_isolation = 'repeatable read'")
    engine = connect(database_url)

    found = in_transaction(engine, lambda c: c.execute(sa.text("show transaction_isolation")).scalar_one())

    assert found == "read committed"
    engine.dispose()


@pytest.fixture
def way(database_url: str) -> Iterator[FaultProxy]:
    proxy = FaultProxy(sa.make_url(database_url).port or 0)
    yield proxy
    proxy.close()


def ask(engine: sa.Engine) -> int:
    return in_transaction(engine, lambda c: int(c.execute(sa.text("select 1")).scalar_one()))


@pytest.mark.parametrize("call", ["a statement", "a commit"])
def test_a_call_that_nobody_answers_is_given_up_a_little_after_its_limit(
    way: FaultProxy, database_url: str, call: str
) -> None:
    """The proxy keeps the connection alive, as a pooler does that lost its other end: TCP notices nothing."""
    engine = connect(way.url(database_url), pool_size=1, statement_timeout_seconds=0.5)
    assert ask(engine) == 1

    def work(c: sa.Connection) -> None:
        if call == "a statement":
            way.half_open()
        c.execute(sa.text("select 1"))
        way.half_open()

    began = time.monotonic()
    with pytest.raises(DatabaseAway):
        in_transaction(engine, work)
    assert 5 < time.monotonic() - began < 20
    assert ask(engine) == 1
    engine.dispose()


def test_a_slow_statement_within_its_limit_is_no_silence(database_url: str) -> None:
    engine = connect(database_url, pool_size=1, statement_timeout_seconds=0)  # as a migration has it
    in_transaction(engine, lambda c: c.execute(sa.text("select pg_sleep(2)")).all())
    engine.dispose()


def test_the_server_ends_a_transaction_whose_client_says_nothing_more(rows: Rows, database_url: str) -> None:
    """Its row locks would stop every other worker until a person came."""
    task = rows.pending()
    engine = connect(database_url, pool_size=1, statement_timeout_seconds=0.5)
    silent = engine.connect()
    silent.execute(sa.text("select 1 from tasks for update"))

    assert rows.now(task).id == task.id
    assert rows.moved(task, Status.CANCELLED).status is Status.CANCELLED  # waits for the lock

    silent.invalidate()
    silent.close()
    engine.dispose()


def test_what_the_database_refuses_is_counted_by_its_class(database_url: str) -> None:
    measured = metrics.build(metrics.EVERYTHING, strict=True)
    engine = connect(database_url, pool_size=2, metrics=measured)

    def run(statement: str) -> None:
        in_transaction(engine, lambda c: c.execute(sa.text(statement)))

    with pytest.raises(sa.exc.DBAPIError):
        run("select 1 / 0")
    with pytest.raises(DatabaseAway):
        run("select pg_terminate_backend(pg_backend_pid())")

    counted = {name: measured.value("database_errors_total", error_class=name) for name in DATABASE_ERRORS}
    assert counted == {"deadlock": 0, "serialization": 0, "lock_timeout": 0, "disconnect": 1, "other": 1}
    engine.dispose()


def test_two_transactions_that_wait_for_each_other_both_end_and_one_deadlock_is_counted(rows: Rows) -> None:
    measured = metrics.build(metrics.EVERYTHING, strict=True)
    engine = connect(rows.url, pool_size=2, metrics=measured)
    first, second = rows.pending(), rows.pending()
    both_hold_one = threading.Barrier(2)

    def swap(mine: Task, theirs: Task) -> None:
        def work(connection: sa.Connection) -> None:
            connection.execute(sa.text("select 1 from tasks where id = :id for update"), {"id": mine.id})
            with suppress(threading.BrokenBarrierError):  # whoever repeats its transaction comes alone
                both_hold_one.wait(3)
            connection.execute(sa.text("select 1 from tasks where id = :id for update"), {"id": theirs.id})

        in_transaction(engine, work)

    with ThreadPoolExecutor(2) as threads:
        for swapped in [threads.submit(swap, first, second), threads.submit(swap, second, first)]:
            swapped.result(60)
    assert measured.value("database_errors_total", error_class="deadlock") >= 1
    engine.dispose()
