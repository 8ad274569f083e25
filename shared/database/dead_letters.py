"""The table `dead_letters`, written: every letter recorded once, opened again when its row fails again."""

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from shared.database.actions import note_action
from shared.database.engine import Anew, in_transaction
from shared.database.letters import Letters
from shared.domain.letters import exception_of, failure_fingerprint
from shared.domain.task import Reason, Stage, said_in
from shared.observe.crash import CrashPoint, crash_point
from shared.observe.logs import redacted, redacted_body

#: Bytes of a message's body that are kept.
MAX_BODY_BYTES: Final = 64 * 1024
_MAX_DETAIL_CHARS: Final = 8000


@dataclass(frozen=True, slots=True, kw_only=True)
class NewLetter:
    """One delivery from a dead queue, everything in it storable. The columns are those of a StoredLetter.

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
    workflow: str | None = None
    exchange: str | None = None
    routing_key: str | None = None
    queue: str | None = None
    deliveries: int | None = None
    broker_reason: str | None = None
    trace_id: str | None = None
    version: str | None = None


#: What the rows say of the letters about them. A letter travels with the beginning of what happened, its row has more.
_ROWS: Final = sa.text("""
select w.task_id, w.attempt, t.pool, a.backend, coalesce(a.provider_job_id,
        case when t.attempt = w.attempt then t.provider_job_id end) as provider_job_id,
    jsonb_build_object('workflow', t.body -> 'workflow', 'pools', t.body -> 'pools') as said,
    case when t.status = 'failed' and t.attempt = w.attempt then t.detail end as detail
from (select distinct * from unnest(cast(:ids as uuid[]), cast(:attempts as int[])) as v(task_id, attempt)) w
join tasks t on t.id = w.task_id left join attempts a on a.task_id = w.task_id and a.attempt = w.attempt
""")

_LETTERS: Final = """
unnest(cast(:identities as text[]), cast(:task_ids as uuid[]), cast(:attempts as int[]), cast(:stages as text[]),
       cast(:reasons as text[]), cast(:details as text[]), cast(:exceptions as text[]), cast(:fingerprints as text[]),
       cast(:pools as text[]), cast(:backends as text[]), cast(:workflows as text[]), cast(:jobs as text[]),
       cast(:exchanges as text[]), cast(:routing_keys as text[]), cast(:queues as text[]), cast(:deliveries as int[]),
       cast(:broker_reasons as text[]), cast(:message_ids as text[]), cast(:message_types as text[]),
       cast(:traces as text[]), cast(:versions as text[]), cast(:bodies as text[]), cast(:headers as jsonb[]))
    as v(identity, task_id, attempt, stage, reason, detail, exception, fingerprint, pool, backend, workflow,
         provider_job_id, exchange, routing_key, queue, deliveries, broker_reason, message_id, message_type, trace_id,
         version, body, headers)
"""

#: Letters before rows, and in the order of their ids, as a replay locks them.
_KNOWN: Final = sa.text("select identity from dead_letters where identity = any(:identities) order by id for update")

#: Waits for a person who is adopting a job for one of these rows.
_LOCK_TASKS: Final = sa.text("select id from tasks where id = any(cast(:ids as uuid[])) order by id for share")

#: A letter whose row somebody has taken out of that failure already (adopt needs no letter) has nothing to decide.
_RECORD: Final = sa.text(f"""
insert into dead_letters (identity, task_id, attempt, stage, reason, detail, exception, fingerprint, pool, backend,
                          workflow, provider_job_id, exchange, routing_key, queue, deliveries, broker_reason,
                          message_id, message_type, trace_id, version, body, headers, repeats, state, closed_at,
                          closed_by)
select v.*, (select coalesce(max(b.repeats) + 1, 0) from dead_letters b where b.task_id = v.task_id),
    case when over.actor is null then 'open' else 'replayed' end,
    case when over.actor is null then null else now() end, over.actor
from {_LETTERS}
left join lateral (
    select m.actor from tasks t join task_moves m on m.task_id = t.id
    where t.id = v.task_id and m.from_status = 'failed' and m.attempt = v.attempt
        and (t.status <> 'failed' or t.attempt <> v.attempt or t.stage <> v.stage)
    order by m.version desc limit 1
) as over on true
order by v.identity
on conflict (identity) do nothing
returning identity
""")

#: A row that was replayed (or adopted) and failed again at the same attempt and stage has a letter of that name
#: already. It is a new failure, and not a late copy of the old letter, when the row failed after the letter was
#: last written or closed. One without a row that comes although somebody has closed it is recorded once more: its
#: sender may have placed it again, and nothing else would ever say that it died.
_REOPEN: Final = sa.text(f"""
update dead_letters d set state = 'open', closed_at = null, closed_by = null, at = now(), repeats = d.repeats + 1,
    reason = v.reason, detail = v.detail, exception = v.exception, fingerprint = v.fingerprint, pool = v.pool,
    backend = v.backend, workflow = v.workflow, provider_job_id = v.provider_job_id, exchange = v.exchange,
    routing_key = v.routing_key, queue = v.queue, deliveries = v.deliveries, broker_reason = v.broker_reason,
    message_id = v.message_id, message_type = v.message_type, trace_id = v.trace_id, version = v.version,
    body = v.body, headers = v.headers
from {_LETTERS},
    (select id, state from dead_letters where identity = any(:identities) order by id for update) as old
where d.identity = v.identity and old.id = d.id and (
    d.task_id is null and old.state <> 'open'
    or exists (
        select 1 from tasks t where t.id = d.task_id and t.status = 'failed' and t.attempt = d.attempt
            and t.stage = d.stage and t.changed_at > greatest(d.at, d.closed_at)))
returning d.id, d.identity, old.state as was
""")

#: Those that came back in this very transaction: the trigger that counts them has just said so.
_GROUPS_REOPENED: Final = sa.text("""
select fingerprint, fixed_in, last_version from letter_groups
where fingerprint = any(:fingerprints) and reopened_at = now() order by fingerprint
""")


class DeadLetters(Letters):
    """The letters, for the collector too. actor -- in whose name it opens letters and groups again."""

    def __init__(self, engine: sa.Engine, actor: str) -> None:
        super().__init__(engine)
        self._actor = actor

    def record(self, letters: Sequence[NewLetter]) -> Sequence[NewLetter]:
        """Every letter stands in the table, each once; those that were new or are open again come back.

        Raises DatabaseAway: record again, nothing is doubled.
        """
        if not letters:
            return ()
        recorded = in_transaction(self.engine, lambda c: self._record(c, letters))
        crash_point(CrashPoint.LETTER_RECORDED)
        return recorded

    def _record(self, c: sa.Connection, letters: Sequence[NewLetter]) -> Sequence[NewLetter]:
        about = [(str(m.task_id), m.attempt) for m in letters if m.task_id is not None and m.attempt is not None]
        asked = {"ids": [task_id for task_id, _ in about], "attempts": [attempt for _, attempt in about]}
        found = {(row.task_id, row.attempt): row for row in c.execute(_ROWS, asked)} if about else {}
        columns = [_columns(m, found.get((m.task_id, m.attempt))) for m in letters]
        rows = {row["identities"]: row for row in columns}
        letter_of = {row["identities"]: letter for row, letter in zip(columns, letters, strict=True)}
        there = {row.identity for row in c.execute(_KNOWN, {"identities": list(rows)})}
        c.execute(_LOCK_TASKS, {"ids": [row["task_ids"] for i, row in rows.items() if i not in there]})
        new = {row.identity for row in c.execute(_RECORD, _transposed(rows.values()))}
        known = [row for identity, row in rows.items() if identity not in new]
        if rows.keys() - new - there:
            raise Anew("another collector recorded a letter that was not there")  # a replay may hold it, and want a row
        reopened = c.execute(_REOPEN, _transposed(known)).all() if known else []
        for row in reopened:
            if row.was != "open":
                detail = {"was": row.was, "reason": rows[row.identity]["reasons"]}
                note_action(c, self._actor, "dead letter reopened", str(row.id), detail)
        recorded = [*new, *(row.identity for row in reopened)]
        touched = {"fingerprints": sorted({rows[identity]["fingerprints"] for identity in recorded})}
        for group in c.execute(_GROUPS_REOPENED, touched):
            detail = {"fixed_in": group.fixed_in, "failed_in": group.last_version}
            note_action(c, self._actor, "dead letter group reopened", group.fingerprint, detail)
        return [letter_of[identity] for identity in recorded]


def storable(text: str, at_most: int = _MAX_DETAIL_CHARS) -> str:
    """Text that PostgreSQL can hold, as text and inside jsonb: no NUL, no half characters. Pure."""
    return text[:at_most].replace("\x00", "�").encode("utf-8", "replace").decode()


def _columns(letter: NewLetter, row: sa.Row[Any] | None) -> dict[str, Any]:
    """What is stored of a letter. row -- what its task's row says, None: there is none"""
    pool = row.pool if row is not None else letter.pool
    detail = (row.detail if row is not None else None) or letter.detail
    return {
        "identities": letter.identity if row is None else f"{letter.task_id}:{letter.attempt}:{letter.stage}",
        "task_ids": str(letter.task_id) if row is not None else None,
        "attempts": letter.attempt if row is not None else None,
        "stages": str(letter.stage),
        "reasons": str(letter.reason),
        "details": redacted(storable(detail), _MAX_DETAIL_CHARS),
        "exceptions": exception_of(detail),
        "fingerprints": failure_fingerprint(letter.reason, pool, detail),
        "pools": pool,
        "backends": row.backend if row is not None else None,
        "workflows": said_in(row.said, row.pool).get("workflow") if row is not None else letter.workflow,
        "jobs": row.provider_job_id if row is not None else None,
        "exchanges": letter.exchange,
        "routing_keys": letter.routing_key,
        "queues": letter.queue,
        "deliveries": letter.deliveries,
        "broker_reasons": letter.broker_reason,
        "message_ids": letter.message_id,
        "message_types": letter.message_type,
        "traces": letter.trace_id,
        "versions": letter.version,
        "bodies": redacted_body(letter.body) if row is not None and letter.body is not None else letter.body,
        "headers": json.dumps(letter.headers),
    }


def _transposed(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return columns
