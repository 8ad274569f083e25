"""The database of a command: there, and with the right schema."""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from shared.config import Settings
from shared.database.engine import connect
from shared.database.revision import current_revision, newest_revision
from shared.terminal import fail


@contextmanager
def opened(chosen: Settings, statement_timeout_seconds: float = 30.0) -> Iterator[sa.Engine]:
    """An engine on a database with the right schema. Raises DatabaseAway."""
    engine = connect(
        chosen.database_url.get_secret_value(), pool_size=1, statement_timeout_seconds=statement_timeout_seconds
    )
    try:
        found, wanted = current_revision(engine), newest_revision()
        if found is None:
            raise fail("this database has no darkroom tables yet: run `darkroom migrate`")
        if found < wanted:
            raise fail(f"this database is at schema {found}, this command needs {wanted}: run `darkroom migrate`")
        yield engine
    finally:
        engine.dispose()
