"""Reads of the table `dead_letters`: by filter in pages, by id, and how often a letter went round. Changes nothing."""

import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from shared.database.engine import in_transaction
from shared.domain.letters import LetterState
from shared.observe.logs import redacted_body


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLetter:
    """One row of `dead_letters`. body -- None in lists; has_body says whether there is one.

    The body of a letter that has a row is redacted when it is recorded, since a replay takes the order from the row.
    One without a row is replayed as it came, so its body is redacted for whoever reads it (`Letters.get`).

    first_at, at  -- first and last seen; it is seen again when its row fails again at the same attempt
    repeats       -- failures of the same order that were recorded before this one
    exception     -- its type, where detail is a traceback
    backend       -- where the attempt ran that failed
    queue         -- the work queue its message was in; exchange and routing_key are those it came by
    deliveries    -- how often that message had been handed out
    broker_reason -- the broker's own word where no handler buried it, such as delivery_limit
    version       -- of the program that buried it
    """

    id: int
    identity: str
    task_id: uuid.UUID | None
    attempt: int | None
    stage: str
    reason: str
    detail: str
    exception: str | None
    fingerprint: str
    pool: str | None
    backend: str | None
    workflow: str | None
    provider_job_id: str | None
    exchange: str | None
    routing_key: str | None
    queue: str | None
    deliveries: int | None
    broker_reason: str | None
    message_id: str | None
    message_type: str | None
    trace_id: str | None
    version: str | None
    has_body: bool
    body: str | None = field(repr=False)
    headers: Mapping[str, Any]
    first_at: datetime
    at: datetime
    repeats: int
    state: str
    closed_at: datetime | None
    closed_by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterFilter:
    """Which letters; what is None does not narrow.

    since, until -- last seen at or after, before; a relative window is frozen to these once (`frozen`)
    text         -- stands in its detail, letter for letter: looking past the case took 0.39 s of CPU time over 100,000
                    tracebacks of 1,500 characters, this takes 0.13
    """

    reason: str | None = None
    stage: str | None = None
    pool: str | None = None
    backend: str | None = None
    workflow: str | None = None
    fingerprint: str | None = None
    state: str | None = LetterState.OPEN
    since: datetime | None = None
    until: datetime | None = None
    order_id: str | None = None
    task_id: uuid.UUID | None = None
    text: str | None = None

    def with_window(self, state: str | None, since: datetime | None, until: datetime | None) -> "LetterFilter":
        """The same for letters of this state (None: of any) in this window. Pure."""
        return replace(self, state=state, since=since, until=until)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A stretch of a list in the order of ids, which never change: no letter comes twice, whatever arrives meanwhile.

    after, before -- next to this id: those with greater ones, those with lesser ones; neither: the beginning
    """

    limit: int = 50
    after: int | None = None
    before: int | None = None
    newest_first: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """What a search came to. down_to -- the letter with the least id that was looked at when its time was over; None:
    there was nothing more to look through, or enough was found
    """

    letters: Sequence[StoredLetter]
    down_to: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRow:
    """One row of `replays`."""

    id: int
    by_whom: str
    at: datetime
    state: str
    result: str | None
    closed_at: datetime | None


#: Select list of a StoredLetter without its body; the alias of `dead_letters` is always d.
LISTED: Final = (
    "d.id, d.identity, d.task_id, d.attempt, d.stage, d.reason, d.detail, d.exception, d.fingerprint, d.pool,"
    " d.backend, d.workflow, d.provider_job_id, d.exchange, d.routing_key, d.queue, d.deliveries, d.broker_reason,"
    " d.message_id, d.message_type, d.trace_id, d.version, d.body is not null as has_body, cast(null as text) as body,"
    " d.headers, d.first_at, d.at, d.repeats, d.state, d.closed_at, d.closed_by"
)
WHOLE: Final = LISTED.replace("cast(null as text) as body", "d.body")

#: The driver writes values into the text, so the planner drops what does not narrow.
_NARROWED: Final = """
(cast(:reason as text) is null or d.reason = :reason)
    and (cast(:stage as text) is null or d.stage = :stage)
    and (cast(:pool as text) is null or d.pool = :pool)
    and (cast(:backend as text) is null or d.backend = :backend)
    and (cast(:workflow as text) is null or d.workflow = :workflow)
    and (cast(:fingerprint as text) is null or d.fingerprint = :fingerprint)
    and (cast(:state as text) is null or d.state = :state)
    and (cast(:since as timestamptz) is null or d.at >= cast(:since as timestamptz))
    and (cast(:until as timestamptz) is null or d.at < cast(:until as timestamptz))
    and (cast(:order_id as text) is null
        or d.task_id = any(array(select t.id from tasks t where t.order_id = :order_id)))
    and (cast(:task_id as uuid) is null or d.task_id = :task_id)
"""
_MATCHING: Final = f"{_NARROWED} and (cast(:text as text) is null or position(:text in d.detail) > 0)"
_BEYOND: Final = """
    and (cast(:after as bigint) is null or d.id > :after) and (cast(:before as bigint) is null or d.id < :before)
"""
_UP: Final = sa.text(f"select {LISTED} from dead_letters d where {_MATCHING} {_BEYOND} order by d.id limit :limit")
_DOWN: Final = sa.text(
    f"select {LISTED} from dead_letters d where {_MATCHING} {_BEYOND} order by d.id desc limit :limit"
)
_LOOK: Final = sa.text(f"""
with stretch as (
    select d.id, position(:text in d.detail) > 0 as fits from dead_letters d
    where {_NARROWED} {_BEYOND} order by d.id desc limit :stretch
)
select count(*) as looked, min(id) as down_to,
    array(select id from stretch where fits order by id desc limit :limit) as ids
from stretch
""")
_LISTED_OF: Final = sa.text(
    f"select {LISTED} from dead_letters d where d.id = any(cast(:ids as bigint[])) order by d.id desc"
)
_IDS: Final = sa.text(f"select d.id from dead_letters d where {_MATCHING} order by d.id limit :limit")
_COUNT: Final = sa.text(f"select count(*) from (select 1 from dead_letters d where {_MATCHING} limit :limit) found")
_WHOLE_UP: Final = sa.text(f"select {WHOLE} from dead_letters d where {_MATCHING} {_BEYOND} order by d.id limit :limit")
_GET: Final = sa.text(f"select {WHOLE} from dead_letters d where d.id = any(cast(:ids as bigint[])) order by d.id")
_REPLAYS: Final = sa.text(
    "select id, by_whom, at, state, result, closed_at from replays where dead_letter_id = :id order by id"
)
_WINDOW: Final = sa.text("""
select now() - cast(:since as float8) * interval '1 second' as since,
    now() - cast(coalesce(:until, 0) as float8) * interval '1 second' as until
""")

#: Letters read at once by `all_whole`.
_CHUNK: Final = 500


class Letters:
    """Every method raises DatabaseAway."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def frozen(self, wanted: LetterFilter, since_seconds: float | None, until_seconds: float = 0.0) -> LetterFilter:
        """The same filter with a window that does not move any more: from so many seconds ago until so many ago.

        Whatever arrives after this moment is not in it. since_seconds -- None: no beginning
        """
        values = {"since": since_seconds, "until": until_seconds}
        window = in_transaction(self.engine, lambda c: c.execute(_WINDOW, values).one())
        return replace(wanted, since=window.since, until=window.until)

    def page(self, wanted: LetterFilter, page: Page | None = None) -> list[StoredLetter]:
        """Letters of the filter, without their bodies; oldest first unless the page says otherwise."""
        page = page or Page()
        values = _values(wanted) | {"after": page.after, "before": page.before, "limit": page.limit}
        is_downwards = page.after is None and (page.before is not None or page.newest_first)
        found = in_transaction(self.engine, lambda c: c.execute(_DOWN if is_downwards else _UP, values).all())
        letters = [StoredLetter(**row._mapping) for row in found]
        return letters if is_downwards == page.newest_first else letters[::-1]

    def search(self, wanted: LetterFilter, limit: int, before: int | None, seconds: float, stretch: int) -> Found:
        """The newest letters below `before` in whose details the filter's text stands, for no longer than `seconds`.

        stretch -- letters that are looked through at once

        There is no index of texts, so that looking through 100,000 tracebacks for a word that none of them has would
        take as long as they are.
        """
        values = _values(wanted) | {"after": None, "stretch": stretch}
        begun, ids, down_to = time.monotonic(), list[int](), before
        while True:
            row = self._look(values | {"before": down_to, "limit": limit - len(ids)})
            ids += row.ids
            is_all = row.looked < stretch
            down_to = down_to if row.down_to is None else row.down_to
            if is_all or len(ids) >= limit or time.monotonic() - begun >= seconds:
                break
        rows = in_transaction(self.engine, lambda c: c.execute(_LISTED_OF, {"ids": ids}).all())
        letters = [StoredLetter(**row._mapping) for row in rows]
        return Found(letters, None if is_all or len(ids) >= limit else down_to)

    def ids(self, wanted: LetterFilter, limit: int | None = None) -> list[int]:
        """The ids of all letters of the filter, or of the oldest `limit`."""
        return in_transaction(self.engine, lambda c: ids_in(c, wanted, limit))

    def count(self, wanted: LetterFilter, at_most: int = 10_000) -> int:
        """How many there are, counted up to `at_most`."""
        values = _values(wanted) | {"limit": at_most}
        return in_transaction(self.engine, lambda c: int(c.execute(_COUNT, values).scalar_one()))

    def all_whole(self, wanted: LetterFilter, limit: int | None = None) -> Iterator[StoredLetter]:
        """Every letter of the filter, or the oldest `limit`, with its body as people may see it; read in stretches."""
        after: int | None = None
        left = limit
        while left is None or left > 0:
            stretch = _CHUNK if left is None else min(_CHUNK, left)
            found = self._stretch(_values(wanted) | {"after": after, "before": None, "limit": stretch})
            yield from found
            if len(found) < stretch:
                return
            after = found[-1].id
            left = None if left is None else left - len(found)

    def _stretch(self, values: dict[str, Any]) -> list[StoredLetter]:
        found = in_transaction(self.engine, lambda c: c.execute(_WHOLE_UP, values).all())
        return [_shown(StoredLetter(**row._mapping)) for row in found]

    def _look(self, values: dict[str, Any]) -> sa.Row[Any]:
        return in_transaction(self.engine, lambda c: c.execute(_LOOK, values).one())

    def get(self, ids: Iterable[int]) -> dict[int, StoredLetter]:
        """Letters by id, with their bodies as people may see them; unknown ones are missing."""
        wanted = {"ids": list(ids)}
        found = in_transaction(self.engine, lambda c: c.execute(_GET, wanted).all())
        return {row.id: _shown(StoredLetter(**row._mapping)) for row in found}

    def replays(self, letter_id: int) -> Sequence[ReplayRow]:
        """How often the letter went round again, and what came of it."""
        found = in_transaction(self.engine, lambda c: c.execute(_REPLAYS, {"id": letter_id}).all())
        return [ReplayRow(**row._mapping) for row in found]


def ids_in(c: sa.Connection, wanted: LetterFilter, limit: int | None = None) -> list[int]:
    """The ids of the filter's letters, or of the oldest `limit`, in the caller's transaction."""
    return [row.id for row in c.execute(_IDS, _values(wanted) | {"limit": limit})]


def _shown(letter: StoredLetter) -> StoredLetter:
    return letter if letter.body is None else replace(letter, body=redacted_body(letter.body))


def _values(wanted: LetterFilter) -> dict[str, Any]:
    return {
        "reason": wanted.reason,
        "stage": wanted.stage,
        "pool": wanted.pool,
        "backend": wanted.backend,
        "workflow": wanted.workflow,
        "fingerprint": wanted.fingerprint,
        "state": wanted.state,
        "since": wanted.since,
        "until": wanted.until,
        "order_id": wanted.order_id,
        "task_id": wanted.task_id,
        "text": wanted.text,
    }
