"""The table `dead_letters`: every letter recorded once, found again by filter, discarded once."""

import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from shared.database.actions import note_action
from shared.database.engine import in_transaction
from shared.domain.task import Reason, Stage
from shared.observe.crash import CrashPoint, crash_point
from shared.observe.logs import redacted, redacted_body

#: Bytes of a message's body that are kept.
MAX_BODY_BYTES: Final = 64 * 1024
_MAX_DETAIL_CHARS: Final = 8000


@dataclass(frozen=True, slots=True, kw_only=True)
class NewLetter:
    """One delivery from a dead queue, everything in it storable.

    task_id  -- the row the letter is about, if its sender named one; the row need not exist
    identity -- what names the letter when there is no such row
    """

    identity: str
    task_id: uuid.UUID | None
    attempt: int | None
    stage: Stage
    reason: Reason
    detail: str
    pool: str | None
    message_id: str | None
    message_type: str | None
    body: str | None
    headers: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLetter:
    """One row of `dead_letters`. body -- None in lists; has_body says whether there is one.

    The body of a letter that has a row is redacted when it is recorded, since a replay takes the order from the row.
    One without a row is replayed as it came, so its body is redacted for whoever reads it (`DeadLetters.get`).
    """

    id: int
    identity: str
    task_id: uuid.UUID | None
    attempt: int | None
    stage: str
    reason: str
    detail: str
    fingerprint: str
    pool: str | None
    message_id: str | None
    message_type: str | None
    has_body: bool
    body: str | None = field(repr=False)
    headers: Mapping[str, Any]
    at: datetime
    state: str
    closed_at: datetime | None
    closed_by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterFilter:
    """Which letters; what is None does not narrow. since_seconds -- recorded in so many last seconds."""

    reason: str | None = None
    stage: str | None = None
    pool: str | None = None
    since_seconds: float | None = None
    task_id: uuid.UUID | None = None
    fingerprint: str | None = None
    state: str | None = "open"
    limit: int | None = None


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
    "d.id, d.identity, d.task_id, d.attempt, d.stage, d.reason, d.detail, d.fingerprint, d.pool, d.message_id,"
    " d.message_type, d.body is not null as has_body, cast(null as text) as body, d.headers, d.at, d.state,"
    " d.closed_at, d.closed_by"
)
WHOLE: Final = LISTED.replace("cast(null as text) as body", "d.body")

_FILTERED: Final = """
from dead_letters d
where (cast(:reason as text) is null or d.reason = :reason)
    and (cast(:stage as text) is null or d.stage = :stage)
    and (cast(:pool as text) is null or d.pool = :pool)
    and (cast(:task_id as uuid) is null or d.task_id = :task_id)
    and (cast(:fingerprint as text) is null or d.fingerprint = :fingerprint)
    and (cast(:state as text) is null or d.state = :state)
    and (cast(:since as float8) is null or d.at > now() - cast(:since as float8) * interval '1 second')
order by d.id limit :limit
"""
_LIST: Final = sa.text(f"select {LISTED} {_FILTERED}")
_IDS: Final = sa.text(f"select d.id {_FILTERED}")
_GET: Final = sa.text(f"select {WHOLE} from dead_letters d where d.id = any(cast(:ids as bigint[])) order by d.id")

_POOLS: Final = sa.text("select id, pool from tasks where id = any(cast(:ids as uuid[]))")

_LETTERS: Final = """
unnest(cast(:identities as text[]), cast(:task_ids as uuid[]), cast(:attempts as int[]), cast(:stages as text[]),
       cast(:reasons as text[]), cast(:details as text[]), cast(:fingerprints as text[]), cast(:pools as text[]),
       cast(:message_ids as text[]), cast(:message_types as text[]), cast(:bodies as text[]),
       cast(:headers as jsonb[]))
    as v(identity, task_id, attempt, stage, reason, detail, fingerprint, pool, message_id, message_type, body, headers)
"""

_KNOWN: Final = sa.text("select identity from dead_letters where identity = any(:identities)")

#: Waits for a person who is adopting a job for one of these rows. Not for letters that are there: a replay locks its
#: letter first and its row second.
_LOCK_TASKS: Final = sa.text("select id from tasks where id = any(cast(:ids as uuid[])) order by id for share")

#: A letter whose row somebody has taken out of that failure already (adopt needs no letter) has nothing to decide.
_RECORD: Final = sa.text(f"""
insert into dead_letters (identity, task_id, attempt, stage, reason, detail, fingerprint, pool, message_id,
                          message_type, body, headers, state, closed_at, closed_by)
select v.*, case when over.actor is null then 'open' else 'replayed' end,
    case when over.actor is null then null else now() end, over.actor
from {_LETTERS}
left join lateral (
    select m.actor from tasks t join task_moves m on m.task_id = t.id
    where t.id = v.task_id and m.from_status = 'failed' and m.attempt = v.attempt
        and (t.status <> 'failed' or t.attempt <> v.attempt)
    order by m.version desc limit 1
) as over on true
order by v.identity
on conflict (identity) do nothing
returning identity
""")

#: A row that was replayed (or adopted) and failed again at the same attempt and stage has a letter of that name
#: already. It is a new failure, and not a late copy of the old letter, when the row failed after the letter was
#: last written or closed.
_REOPEN: Final = sa.text(f"""
update dead_letters d set state = 'open', closed_at = null, closed_by = null, at = now(), reason = v.reason,
    detail = v.detail, fingerprint = v.fingerprint, pool = v.pool, message_id = v.message_id,
    message_type = v.message_type, body = v.body, headers = v.headers
from {_LETTERS},
    (select id, state from dead_letters where identity = any(:identities) order by identity for update) as old, tasks t
where d.identity = v.identity and old.id = d.id and t.id = d.task_id
    and t.status = 'failed' and t.attempt = d.attempt and t.stage = d.stage
    and t.changed_at > greatest(d.at, d.closed_at)
returning d.id, d.identity, old.state as was
""")

_DISCARD: Final = sa.text("""
update dead_letters d set state = 'discarded', closed_at = now(), closed_by = :by_whom
from (select id from dead_letters where id = any(cast(:ids as bigint[])) order by id for update) as locked
where d.id = locked.id and d.state = 'open' returning d.id
""")

_REPLAYS: Final = sa.text(
    "select id, by_whom, at, state, result, closed_at from replays where dead_letter_id = :id order by id"
)


class DeadLetters:
    """The letters, for the collector and for people. actor -- in whose name the collector reopens one."""

    def __init__(self, engine: sa.Engine, actor: str) -> None:
        self._engine = engine
        self._actor = actor

    def record(self, letters: Sequence[NewLetter]) -> Sequence[NewLetter]:
        """Every letter stands in the table, each once; those that were new or are open again come back.

        Raises DatabaseAway: record again, nothing is doubled.
        """
        if not letters:
            return ()
        recorded = in_transaction(self._engine, lambda c: self._record(c, letters))
        crash_point(CrashPoint.LETTER_RECORDED)
        return recorded

    def _record(self, c: sa.Connection, letters: Sequence[NewLetter]) -> Sequence[NewLetter]:
        ids = [str(letter.task_id) for letter in letters if letter.task_id is not None]
        pools = {row.id: row.pool for row in c.execute(_POOLS, {"ids": ids})} if ids else {}
        columns = [_columns(letter, pools) for letter in letters]
        rows = {row["identities"]: row for row in columns}
        letter_of = {row["identities"]: letter for row, letter in zip(columns, letters, strict=True)}
        there = {row.identity for row in c.execute(_KNOWN, {"identities": list(rows)})}
        c.execute(_LOCK_TASKS, {"ids": [row["task_ids"] for i, row in rows.items() if i not in there]})
        new = {row.identity for row in c.execute(_RECORD, _transposed(rows.values()))}
        known = [row for identity, row in rows.items() if identity not in new]
        reopened = c.execute(_REOPEN, _transposed(known)).all() if known else []
        for row in reopened:
            if row.was != "open":
                detail = {"was": row.was, "reason": rows[row.identity]["reasons"]}
                note_action(c, self._actor, "dead letter reopened", str(row.id), detail)
        return [letter_of[identity] for identity in (*new, *(row.identity for row in reopened))]

    def find(self, wanted: LetterFilter) -> Sequence[StoredLetter]:
        """The letters of the filter without their bodies, oldest first."""
        found = in_transaction(self._engine, lambda c: c.execute(_LIST, _filter(wanted)).all())
        return [StoredLetter(**row._mapping) for row in found]

    def ids(self, wanted: LetterFilter) -> Sequence[int]:
        """Their ids alone."""
        return in_transaction(self._engine, lambda c: [row.id for row in c.execute(_IDS, _filter(wanted))])

    def get(self, ids: Iterable[int]) -> dict[int, StoredLetter]:
        """Letters by id, with their bodies as people may see them; unknown ones are missing."""
        wanted = {"ids": list(ids)}
        found = in_transaction(self._engine, lambda c: c.execute(_GET, wanted).all())
        return {row.id: _shown(StoredLetter(**row._mapping)) for row in found}

    def replays(self, letter_id: int) -> Sequence[ReplayRow]:
        """How often the letter went round again, and what came of it."""
        found = in_transaction(self._engine, lambda c: c.execute(_REPLAYS, {"id": letter_id}).all())
        return [ReplayRow(**row._mapping) for row in found]

    def discard(self, ids: Sequence[int], by_whom: str, why: str) -> set[int]:
        """Close the open ones among these letters for good; answers which ones that were. The rows stay failed."""

        def work(c: sa.Connection) -> set[int]:
            closed = {row.id for row in c.execute(_DISCARD, {"ids": list(ids), "by_whom": by_whom})}
            for letter_id in sorted(closed):
                note_action(c, by_whom, "dead letter discard", str(letter_id), {"why": why})
            return closed

        return in_transaction(self._engine, work)


def _shown(letter: StoredLetter) -> StoredLetter:
    return letter if letter.body is None else replace(letter, body=redacted_body(letter.body))


def storable(text: str, at_most: int = _MAX_DETAIL_CHARS) -> str:
    """Text that PostgreSQL can hold, as text and inside jsonb: no NUL, no half characters. Pure."""
    return text[:at_most].replace("\x00", "�").encode("utf-8", "replace").decode()


def failure_fingerprint(reason: str, pool: str | None, detail: str) -> str:
    """The same for failures that differ only in ids, numbers, addresses. Pure."""
    return hashlib.sha256(f"{reason}\n{pool or ''}\n{masked(detail)}".encode()).hexdigest()[:16]


_LAST_LINES: Final = 5
#: In this order: what comes first may hold what comes later. Repetitions are bounded by the length of a detail.
_MASKS: Final = (
    (re.compile(r"data:[a-z]+/[^\s\"'<>]*", re.IGNORECASE), "<data>"),
    (re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s\"'<>]*", re.IGNORECASE), "<url>"),
    (re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.IGNORECASE), "<id>"),
    (re.compile(r"\b(0x)?(?=[0-9a-f]*[0-9])[0-9a-f]{8,}\b", re.IGNORECASE), "<hex>"),
    (re.compile(r"\d+(\.\d+)?"), "<n>"),
    (re.compile(r"\s+"), " "),
)


def masked(detail: str) -> str:
    """The message with everything replaced that differs from one order to the next. Pure.

    Of a traceback, which is cut at its beginning, only the last lines count.
    """
    lines = [line for line in detail.splitlines() if line.strip()]
    text = "\n".join(lines[-_LAST_LINES:])
    for pattern, mark in _MASKS:
        text = pattern.sub(mark, text)
    return text.strip()[:500]


def _columns(letter: NewLetter, pools: Mapping[uuid.UUID, str]) -> dict[str, Any]:
    has_row = letter.task_id in pools and letter.attempt is not None
    pool = pools[letter.task_id] if has_row and letter.task_id is not None else letter.pool
    return {
        "identities": f"{letter.task_id}:{letter.attempt}:{letter.stage}" if has_row else letter.identity,
        "task_ids": str(letter.task_id) if has_row else None,
        "attempts": letter.attempt if has_row else None,
        "stages": str(letter.stage),
        "reasons": str(letter.reason),
        "details": redacted(storable(letter.detail), _MAX_DETAIL_CHARS),
        "fingerprints": failure_fingerprint(letter.reason, pool, letter.detail),
        "pools": pool,
        "message_ids": letter.message_id,
        "message_types": letter.message_type,
        "bodies": redacted_body(letter.body) if has_row and letter.body is not None else letter.body,
        "headers": json.dumps(letter.headers),
    }


def _transposed(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return columns


def _filter(wanted: LetterFilter) -> dict[str, Any]:
    return {
        "reason": wanted.reason,
        "stage": wanted.stage,
        "pool": wanted.pool,
        "task_id": wanted.task_id,
        "fingerprint": wanted.fingerprint,
        "state": wanted.state,
        "since": wanted.since_seconds,
        "limit": wanted.limit,
    }
