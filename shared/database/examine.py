"""Looks at the database as a newcomer would: is it there, new enough, writable, at our schema, on time."""

import time
from collections.abc import Iterator, Sequence
from typing import Final

import sqlalchemy as sa

from shared.database.engine import APPLICATION_NAME, connect, translated
from shared.database.revision import current_revision, newest_revision
from shared.domain.errors import DatabaseAway
from shared.domain.finding import Finding, Verdict

_MIN_VERSION: Final = 140000
_SKEW_SECONDS: Final = 2.0

_ABOUT: Final = sa.text("""
select current_setting('server_version_num')::int as number,
    current_setting('server_version') as version,
    pg_is_in_recovery() as is_standby,
    current_setting('transaction_read_only')::bool as is_read_only,
    current_setting('synchronous_commit') = 'off' as commits_early,
    array(select name from unnest(array['fsync', 'full_page_writes']) name where not current_setting(name)::bool)
        as unsafe,
    extract(epoch from clock_timestamp())::float8 as now,
    current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
        - coalesce(current_setting('reserved_connections', true), '0')::int as most,
    (select count(*) from pg_stat_activity where datid is not null and application_name is distinct from :ours)::int
        as others
""")


class DatabaseLook:
    """One look; it writes nothing.

    before_start -- an empty database is a failure then: no worker starts with it
    room         -- connections PostgreSQL has for us, those already open included; None until somebody could say
    """

    def __init__(self, url: str, *, before_start: bool = False) -> None:
        self._url = url
        self._empty = Verdict.FAIL if before_start else Verdict.WARN
        self.room: int | None = None

    @property
    def answered(self) -> bool:
        return self.room is not None

    def findings(self) -> Iterator[Finding]:
        """Everything there is to say."""
        for must_take_writes in (True, False):  # a server that takes none refuses the first time
            engine = connect(
                self._url,
                pool_size=1,
                statement_timeout_seconds=5,
                connect_timeout_seconds=3,
                must_take_writes=must_take_writes,
            )
            try:
                yield from self._look_into(engine)
            except DatabaseAway as error:
                if must_take_writes:
                    continue
                lines = str(error).splitlines()
                found = f"no connection to PostgreSQL: {lines[0] if lines else 'no reason given'}"
                yield Finding("database", Verdict.FAIL, found, "start it, or correct DARKROOM_DATABASE_URL")
            finally:
                engine.dispose()
            return

    def _look_into(self, engine: sa.Engine) -> Iterator[Finding]:
        with translated(), engine.connect() as connection:
            began = time.time()
            row = connection.execute(_ABOUT, {"ours": APPLICATION_NAME}).one()
            ended = time.time()
        schema = _schema(current_revision(engine), newest_revision(), self._empty)
        self.room = row.most - row.others
        yield _version(row.number, row.version)
        if row.is_standby:
            found, advice = "it is a standby and takes no writes", "name the primary in DARKROOM_DATABASE_URL"
            yield Finding("database", Verdict.FAIL, found, advice)
        elif row.is_read_only:
            found = "it is read-only: default_transaction_read_only is on"
            yield Finding("database", Verdict.FAIL, found, "turn that off for this database and this role")
        yield from _kept(row.commits_early, row.unsafe)
        yield schema
        yield _clock(max(began - row.now, row.now - ended, 0.0))


def _version(number: int, version: str) -> Finding:
    if number < _MIN_VERSION:
        return Finding("database", Verdict.FAIL, f"PostgreSQL {version} is too old", "14 or newer is needed")
    return Finding("database", Verdict.OK, f"PostgreSQL {version}")


def _kept(commits_early: bool, unsafe: Sequence[str]) -> Iterator[Finding]:
    """Whether what was committed is there after a crash: an order is acked when its row is committed."""
    if commits_early:
        found = "a crash would lose orders that were acked: synchronous_commit is off"
        yield Finding("database", Verdict.FAIL, found, "turn it on for this database and this role")
    for name in unsafe:
        found = f"a crash of its machine would lose orders that were acked: {name} is off"
        yield Finding("database", Verdict.FAIL, found, "turn it on in postgresql.conf")


def _schema(current: str | None, newest: str, empty: Verdict) -> Finding:
    if current is None:
        return Finding("schema", empty, "the database is empty", "run `darkroom migrate`")
    if current < newest:
        found = f"the database is at revision {current}, this version needs {newest}"
        return Finding("schema", Verdict.FAIL, found, "run `darkroom migrate`")
    if current > newest:
        found = f"the database is at revision {current}, this version knows {newest}"
        advice = "as it should be during a rolling deploy; otherwise run the version that made it"
        return Finding("schema", Verdict.WARN, found, advice)
    return Finding("schema", Verdict.OK, f"revision {current}")


def _clock(skew: float) -> Finding:
    if skew > _SKEW_SECONDS:
        found = f"this machine and the database differ by {skew:.1f} s"
        return Finding("clock", Verdict.WARN, found, "logs and metrics carry the local time: use NTP")
    return Finding("clock", Verdict.OK, f"this machine and the database agree within {_SKEW_SECONDS:.0f} s")
