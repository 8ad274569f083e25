"""A server that takes no writes, as after a failover: an outage that ends by itself, without a restart of ours."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import sqlalchemy as sa

from deploy.local import Stack
from shared.database.engine import connect, in_transaction
from shared.domain.errors import DatabaseAway
from tests.factories import Rows
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
