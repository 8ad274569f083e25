"""Looks at the database as a newcomer would: is it there, new enough, at our schema, writable, on time."""

import time
from collections.abc import Iterator
from typing import Final

import sqlalchemy as sa

from shared.database.engine import connect, translated
from shared.database.migrate import current_revision, newest_revision
from shared.domain.errors import DatabaseAway
from shared.domain.finding import Finding, Verdict

_MIN_VERSION: Final = 140000
_SKEW_SECONDS: Final = 2.0


def examine_database(url: str) -> Iterator[Finding]:
    """Everything there is to say. Writes nothing."""
    engine = connect(url, pool_size=1, statement_timeout_seconds=5)
    try:
        with translated(), engine.connect() as connection:
            began = time.time()
            row = connection.execute(
                sa.text(
                    "select current_setting('server_version_num')::int as number, current_setting('server_version') as"
                    " version, pg_is_in_recovery() or current_setting('default_transaction_read_only')::bool as"
                    " is_read_only, extract(epoch from clock_timestamp())::float8 as now"
                )
            ).one()
            ended = time.time()
        is_old = row.number < _MIN_VERSION
        yield Finding(
            "database",
            Verdict.FAIL if is_old else Verdict.OK,
            f"PostgreSQL {row.version}",
            "14 or newer is needed" if is_old else "",
        )
        if row.is_read_only:
            yield Finding("database", Verdict.FAIL, "it takes no writes", "is the address that of a replica?")
        yield _schema(current_revision(engine), newest_revision())
        yield _clock(max(began - row.now, row.now - ended, 0.0))
    except DatabaseAway as error:
        found = f"PostgreSQL does not answer: {str(error).splitlines()[0]}"
        yield Finding("database", Verdict.FAIL, found, "start it, or correct DARKROOM_DATABASE_URL")
    finally:
        engine.dispose()


def _schema(current: str | None, newest: str) -> Finding:
    if current == newest:
        return Finding("schema", Verdict.OK, f"revision {current}")
    if current is None:
        return Finding("schema", Verdict.WARN, "the database is empty", "run `darkroom migrate`")
    return Finding(
        "schema",
        Verdict.FAIL,
        f"the database is at revision {current}, this version needs {newest}",
        "run `darkroom migrate` of the newest version in use",
    )


def _clock(skew: float) -> Finding:
    if skew > _SKEW_SECONDS:
        found = f"this machine and the database differ by {skew:.1f} s"
        return Finding("clock", Verdict.WARN, found, "logs and metrics carry the local time: use NTP")
    return Finding("clock", Verdict.OK, f"this machine and the database agree within {_SKEW_SECONDS:.0f} s")
