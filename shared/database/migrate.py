"""Brings a database to the newest schema. `darkroom migrate` and the tests call this; workers only compare."""

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from shared.database.engine import connect, translated


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def newest_revision() -> str:
    """The revision this code was written for."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None, "the migrations folder is empty"  # noqa: S101 - a broken installation, not an input
    return head


def current_revision(engine: sa.Engine) -> str | None:
    """The revision the database is at; None before the first migration."""
    with translated(), engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def upgrade(url: str) -> str:
    """Migrate to the newest revision and return it. Safe to run at any time, also from several places at once."""
    engine = connect(url, pool_size=1, statement_timeout_seconds=0)
    try:
        config = _config()
        with translated(), engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
    finally:
        engine.dispose()
    return newest_revision()
