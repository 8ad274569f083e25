"""Which schema a database has, and which this code needs. Every process asks, so this does without Alembic.

Alembic and what it imports (Mako, Pygments) are a sixth of a worker's start, and it reads every migration to answer.
"""

from functools import cache
from pathlib import Path

import sqlalchemy as sa

from shared.database.engine import translated

_VERSIONS = Path(__file__).parent / "migrations" / "versions"


@cache
def newest_revision() -> str:
    """The revision this code was written for: the highest of the numbers that begin the migrations' file names."""
    return max(file.name.partition("_")[0] for file in _VERSIONS.glob("[0-9]*_*.py"))


def current_revision(engine: sa.Engine) -> str | None:
    """The revision the database is at; None before the first migration. Raises DatabaseAway."""
    with translated(), engine.connect() as connection:
        if connection.scalar(sa.text("select to_regclass('alembic_version')")) is None:
            return None
        found: str | None = connection.scalar(sa.text("select version_num from alembic_version"))
        return found
