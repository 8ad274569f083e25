"""The schema: made once, whoever comes at the same time, and the same as its readable picture in schema.py."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from shared.database import schema
from shared.database.engine import connect
from shared.database.migrate import upgrade
from shared.database.revision import current_revision, newest_revision
from shared.domain.task import LEGAL_MOVES

ROOT = Path(__file__).parents[2]


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    engine = connect(database_url)
    yield engine
    engine.dispose()


def test_an_empty_database_has_no_revision_and_then_the_newest(empty_database_url: str) -> None:
    engine = connect(empty_database_url)
    assert current_revision(engine) is None

    assert upgrade(empty_database_url) == newest_revision()

    assert current_revision(engine) == newest_revision()
    engine.dispose()


def test_migrating_again_keeps_every_row(database_url: str, engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "insert into backends (name, pool, adapter, url, capacity, max_run_seconds)"
                " values ('a', 'p', 'c', 'u', 1, 1)"
            )
        )

    upgrade(database_url)

    with engine.connect() as connection:
        assert connection.execute(sa.text("select name from backends")).scalars().all() == ["a"]


def test_three_processes_that_start_at_once_migrate_once(empty_database_url: str) -> None:
    program = "import sys; from shared.database.migrate import upgrade; print(upgrade(sys.argv[1]))"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, empty_database_url], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for _ in range(3)
    ]

    answers = [(process.communicate(timeout=60)[0].strip(), process.returncode) for process in started]

    assert answers == [(newest_revision(), 0)] * 3
    engine = connect(empty_database_url)
    assert current_revision(engine) == newest_revision()
    engine.dispose()


def test_the_table_of_legal_moves_is_the_constant(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        rows = connection.execute(sa.text("select from_status, to_status from legal_moves")).all()

    assert {(row.from_status, row.to_status) for row in rows} == LEGAL_MOVES
    assert len(rows) == len(LEGAL_MOVES)


def test_every_table_has_the_columns_and_keys_that_schema_py_shows(engine: sa.Engine) -> None:
    migrated = sa.inspect(engine)
    names = set(migrated.get_table_names()) - {"alembic_version"}

    assert names == set(schema.metadata.tables)
    for name in names:
        shown = schema.metadata.tables[name]
        columns = {c["name"]: (c["type"].compile(engine.dialect), c["nullable"]) for c in migrated.get_columns(name)}
        assert columns == {c.name: (c.type.compile(engine.dialect), c.nullable) for c in shown.columns}, name
        assert migrated.get_pk_constraint(name)["constrained_columns"] == [c.name for c in shown.primary_key], name
        references = {
            (tuple(key["constrained_columns"]), key["referred_table"], tuple(key["referred_columns"]))
            for key in migrated.get_foreign_keys(name)
        }
        assert references == {
            (tuple(key.column_keys), key.referred_table.name, tuple(e.column.name for e in key.elements))
            for key in shown.foreign_key_constraints
        }, name


def test_every_unique_rule_and_check_is_the_one_that_schema_py_shows(engine: sa.Engine) -> None:
    migrated = sa.inspect(engine)
    for name, shown in schema.metadata.tables.items():
        unique = {tuple(rule["column_names"]) for rule in migrated.get_unique_constraints(name)}
        wanted = {tuple(c.columns.keys()) for c in shown.constraints if isinstance(c, sa.UniqueConstraint)}
        assert unique == wanted, name
        indexes = {(i["name"], tuple(i["column_names"]), i["unique"]) for i in migrated.get_indexes(name)}
        indexes = {index for index in indexes if index[1] not in unique}
        assert indexes == {(i.name, tuple(i.columns.keys()), i.unique) for i in shown.indexes}, name
        rules = [*shown.constraints, *(rule for column in shown.columns for rule in column.constraints)]
        checks = {rule for rule in rules if isinstance(rule, sa.CheckConstraint)}
        assert len(migrated.get_check_constraints(name)) == len(checks), name


@pytest.mark.parametrize(
    "statement",
    [
        "insert into tasks (id, idempotency_key, fingerprint, pool, deadline_at, actor, trace_id) values"
        " (gen_random_uuid(), 'k', 'f', 'p', now(), 'a', 't')",  # active and never due
        "insert into tasks (id, idempotency_key, fingerprint, pool, deadline_at, due_at, actor, trace_id, status)"
        " values (gen_random_uuid(), 'k', 'f', 'p', now(), now(), 'a', 't', 'processing')",  # processing nowhere
        "insert into tasks (id, idempotency_key, fingerprint, pool, deadline_at, due_at, actor, trace_id, status)"
        " values (gen_random_uuid(), 'k', 'f', 'p', now(), now(), 'a', 't', 'rendering')",  # no such status
        "insert into backends (name, pool, adapter, url, capacity, max_run_seconds) values ('a', 'p', 'c', 'u', 0, 1)",
    ],
)
def test_the_database_refuses_rows_that_cannot_be(engine: sa.Engine, statement: str) -> None:
    with pytest.raises(sa.exc.IntegrityError), engine.begin() as connection:
        connection.execute(sa.text(statement))
