"""Brings a database to the newest schema. `darkroom migrate` and the tests call this; workers only compare."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from shared.database.engine import connect, translated


def upgrade(url: str) -> str:
    """Migrate to the newest revision and return it. Safe to run at any time, also from several places at once."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    engine = connect(url, pool_size=1, statement_timeout_seconds=0)
    try:
        with translated(), engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
    finally:
        engine.dispose()
    head = ScriptDirectory.from_config(config).get_current_head()
    assert head is not None, "the migrations folder is empty"  # noqa: S101 - a broken installation, not an input
    return head
