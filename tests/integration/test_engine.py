"""A server that takes no writes or does not answer: an outage that ends by itself, without a restart of ours."""

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import sqlalchemy as sa

from deploy.local import Stack
from shared.database.engine import connect, in_transaction
from shared.domain.errors import DatabaseAway
from shared.domain.task import Status
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
