"""Statements that are planned once per connection: what they are given, and what becomes of a plan that is outdated."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from shared.database.engine import connect, in_transaction
from shared.database.prepared import prepared
from shared.database.slots import Slots
from shared.domain.errors import DatabaseAway
from tests.factories import MEASURED, POOL

_ECHO = prepared("select cast(:values as text[]) as values", "values")
_WIDE = prepared("select id, note from wide where id = any(cast(:ids as int[]))", "id", "note")


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    engine = connect(database_url, pool_size=1)
    # An empty table of broad rows is thought to hold so few that reading all of them looks cheapest.
    made = "create table wide (id int primary key, note char(2000))"
    in_transaction(engine, lambda c: c.exec_driver_sql(made))
    yield engine
    engine.dispose()


def find(engine: sa.Engine, *ids: int) -> list[int]:
    return in_transaction(engine, lambda c: [row.id for row in c.execute(_WIDE, {"ids": ids})])


def ask(engine: sa.Engine, question: str) -> str:
    return in_transaction(engine, lambda c: "\n".join(str(row[0]) for row in c.exec_driver_sql(question)))


def test_values_of_any_look_arrive_as_they_are(engine: sa.Engine) -> None:
    values = ["", "null", None, 'a "b"', "a\\b", "{a,b}", " a ", "it's", "100 %", "%(ids)s", "ä€🖼", "a\nb"]

    assert in_transaction(engine, lambda c: c.execute(_ECHO, {"values": values}).scalar_one()) == values
    assert in_transaction(engine, lambda c: c.execute(_ECHO, {"values": []}).scalar_one()) == []


def test_a_statement_is_planned_once_whatever_it_is_given(engine: sa.Engine) -> None:
    for ids in ([1], [2, 3], []):
        find(engine, *ids)

    plans = "select custom_plans || ' for one call, ' || generic_plans || ' times the kept one' from "
    assert ask(engine, plans + "pg_prepared_statements") == "0 for one call, 3 times the kept one"


def test_what_picks_the_next_rows_of_a_pool_is_planned_for_that_pool(engine: sa.Engine) -> None:
    slots = Slots(engine, "test", MEASURED)
    slots.sync([("gpu-1", POOL, "comfyui", "http://127.0.0.1:1", 8, 60.0)])

    slots.take(POOL, at_most=8, lease_seconds=60.0)

    kept = ask(engine, "select statement from pg_prepared_statements")
    assert "from backends" in kept
    assert "order by t.priority" not in kept


def test_a_plan_for_an_empty_table_is_left_when_the_table_has_grown(engine: sa.Engine) -> None:
    find(engine, 1)
    plan = "explain execute darkroom_0('{1}')"
    assert "Seq Scan" in ask(engine, plan)
    ask(engine, "insert into wide select n, '' from generate_series(1, 2000) n returning id")
    assert "Seq Scan" in ask(engine, plan), "the server plans again by itself"

    assert [find(engine, 5) for _ in range(3)] == [[5]] * 3

    assert "Seq Scan" not in ask(engine, plan)


def test_a_connection_whose_plan_no_longer_fits_the_tables_is_left_after_one_outage(engine: sa.Engine) -> None:
    find(engine, 1)
    ask(engine, "alter table wide alter column note type text; select 1")

    with pytest.raises(DatabaseAway, match="cached plan"):
        find(engine, 1)

    assert find(engine, 1) == []
