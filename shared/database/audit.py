"""The promises as questions to the database: each check answers with the rows that break one."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

import sqlalchemy as sa

from shared.database.engine import in_transaction
from shared.domain.task import LEGAL_MOVES

#: Pictures read again at the same time.
_READERS: Final = 8


class Check(StrEnum):
    """What is checked; the label values of darkroom_invariant_violations."""

    DUPLICATE_TASK = "duplicate_task"
    DUPLICATE_ORDER = "duplicate_order"
    DOUBLE_SUBMIT = "double_submit"
    LOST_ORDER = "lost_order"
    MISSING_ARTIFACT = "missing_artifact"
    OVER_CAPACITY = "over_capacity"
    ZOMBIE = "zombie"
    BAD_HISTORY = "bad_history"
    LEGAL_MOVES = "legal_moves"


#: The promise behind each check, in words for a person.
PROMISES: Final[Mapping[Check, str]] = {
    Check.DUPLICATE_TASK: "one task per key",
    Check.DUPLICATE_ORDER: "one active task per order_id",
    Check.DOUBLE_SUBMIT: "a completed task has exactly one attempt that completed it",
    Check.LOST_ORDER: "every unfinished task has a moment at which somebody looks at it",
    Check.MISSING_ARTIFACT: "every finished task has its pictures, or a reason",
    Check.OVER_CAPACITY: "no backend has more in flight than it takes",
    Check.ZOMBIE: "no finished task has owed its event, or a cancel to a server that is up, for over five minutes",
    Check.BAD_HISTORY: "every history is a chain of legal moves that ends in the status",
    Check.LEGAL_MOVES: "the database allows exactly the moves that the code knows",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One broken promise. subject -- a task id, a backend's name, a key or an order id."""

    check: Check
    subject: str
    detail: str


class Store(Protocol):
    """What the audit needs of the artifact store."""

    def digest(self, key: str) -> str:
        """SHA-256 (hex) of the stored bytes. Raises FileNotFoundError, StorageAway."""
        ...


#: Where a check says {recent}, one of these goes: two texts, because an OR would make the planner read all rows.
_ALL: Final = "true"
_RECENT: Final = "t.id in (select r.task_id from task_moves r where r.at > now() - :since * interval '1 second')"

#: Moves that `count_violations` reads at most; of a busier time it looks at the end alone.
_MOST_MOVES: Final = 100_000
_MANY_MOVES_AGO: Final = sa.text(
    "select extract(epoch from now() - at)::float8 from task_moves order by at desc offset :most limit 1"
)

_DUPLICATE_TASK: Final = """
select t.idempotency_key as subject, count(*) || ' tasks have this key' as detail from tasks t
where t.idempotency_key in (select t.idempotency_key from tasks t where {recent})
group by t.idempotency_key having count(*) > 1
union all
select t.idempotency_key, 'the key has task ' || t.id || ' and is also kept as a duplicate of ' || d.task_id
from tasks t join duplicate_keys d on d.idempotency_key = t.idempotency_key where {recent}
"""

_DUPLICATE_ORDER: Final = """
select t.order_id as subject, count(*) || ' active tasks: ' || string_agg(t.id::text, ', ') as detail from tasks t
where t.status in ('pending', 'submitting', 'processing') and t.order_id is not null
group by t.order_id having count(*) > 1
"""

_DOUBLE_SUBMIT: Final = """
select t.id::text as subject, 'attempts that completed it: ' || coalesce(a.numbers, 'none')
    || '; it ended at attempt ' || t.attempt as detail
from tasks t left join lateral (
    select string_agg(a.attempt::text, ', ' order by a.attempt) as numbers
    from attempts a where a.task_id = t.id and a.outcome = 'completed') a on true
where t.status = 'completed' and a.numbers is distinct from t.attempt::text and {recent}
"""

#: In two halves, each through its own partial index.
_LOST_ORDER: Final = """
select t.id::text as subject, t.status || ' without a due_at' as detail from tasks t
where t.status in ('pending', 'submitting') and t.due_at is null
union all
select t.id::text, t.status || ' without a due_at' from tasks t
where t.status = 'processing' and t.due_at is null
"""

_MISSING_ARTIFACT: Final = """
select t.id::text as subject, case when t.status = 'completed' then 'completed without a picture'
    else t.status || ' without a reason' end as detail
from tasks t
where (t.status = 'completed'
        and not exists (select 1 from artifacts a where a.task_id = t.id and a.attempt = t.attempt)
    or t.status in ('failed', 'cancelled') and coalesce(t.reason, '') = '')
    and {recent}
"""

_OVER_CAPACITY: Final = """
select b.name as subject, f.live || ' in flight, it takes ' || b.capacity as detail
from backends b join (
    select t.backend, count(*) as live from tasks t
    where t.status in ('submitting', 'processing') or t.cancel_owed group by t.backend) f on f.backend = b.name
where f.live > b.capacity
"""

#: What was cancelled while submitting is looked at when its lease is over, and owes nothing before. A cancel that a
#: server which is away or frozen owes breaks no promise: its `health` says so, and a person may forget the server.
_ZOMBIE: Final = """
select t.id::text as subject, t.status || ' since ' || t.finished_at || ', still owed: '
    || case when t.told_at is null then 'its event' else 'a cancel at ' || t.backend end as detail
from tasks t left join backends b on b.name = t.backend
where t.due_at is not null and t.status in ('completed', 'failed', 'cancelled')
    and case when t.told_at is null then greatest(t.finished_at, case when t.cancel_owed then t.free_at end)
        when b.health = 'up' then greatest(t.told_at, b.health_changed_at) end
        < now() - interval '5 minutes'
"""

_BAD_HISTORY: Final = """
with moves as (
    select m.task_id, m.version, m.from_status, m.to_status, m.attempt,
        row_number() over w as place, lag(m.to_status) over w as before, lag(m.attempt) over w as attempt_before,
        lead(m.version) over w is null as is_last, l.from_status is not null as is_legal
    from task_moves m join tasks t on t.id = m.task_id
        left join legal_moves l on l.from_status = m.from_status and l.to_status = m.to_status
    where {recent} window w as (partition by m.task_id order by m.version)
), wrong as (
    select task_id, version, case
        when version <> place then 'move ' || place || ' has version ' || version
        when place = 1 and (from_status is not null or to_status <> 'pending') then 'begins as ' || to_status
        when place > 1 and from_status is distinct from before
            then 'leaves ' || coalesce(from_status, 'nothing') || ' after it had become ' || before
        when place > 1 and not is_legal then 'moves from ' || from_status || ' to ' || to_status
        when attempt < attempt_before then 'attempt falls from ' || attempt_before || ' to ' || attempt
        end as fault
    from moves
)
select task_id::text as subject, min('version ' || version || ': ' || fault) as detail
from wrong where fault is not null group by task_id
union all
select t.id::text, case when m.task_id is null then 'no history'
    else 'history ends as ' || m.to_status || ' in version ' || m.version
        || ', the row is ' || t.status || ' in version ' || t.version end
from tasks t left join moves m on m.task_id = t.id and m.is_last
where (m.task_id is null or m.to_status <> t.status or m.version <> t.version) and {recent}
"""

_PICTURES: Final = sa.text("""
select t.id, a.index, a.key, a.sha256 from tasks t join artifacts a on a.task_id = t.id and a.attempt = t.attempt
where t.status = 'completed' order by t.id, a.index
""")

_SQL: Final[Mapping[Check, str]] = {
    Check.DUPLICATE_TASK: _DUPLICATE_TASK,
    Check.DUPLICATE_ORDER: _DUPLICATE_ORDER,
    Check.DOUBLE_SUBMIT: _DOUBLE_SUBMIT,
    Check.LOST_ORDER: _LOST_ORDER,
    Check.MISSING_ARTIFACT: _MISSING_ARTIFACT,
    Check.OVER_CAPACITY: _OVER_CAPACITY,
    Check.ZOMBIE: _ZOMBIE,
    Check.BAD_HISTORY: _BAD_HISTORY,
}


def run_audit(engine: sa.Engine, artifacts: Store, looked: Callable[[int], object] = lambda _: None) -> list[Finding]:
    """Every broken promise, all rows looked at in one snapshot, and every picture of a completed task read again.

    looked -- told after each picture how many are left

    Raises DatabaseAway, StorageAway: nothing can be said then.
    """

    def questions(c: sa.Connection) -> tuple[list[Finding], list[sa.Row[tuple[object, ...]]]]:
        c.execute(sa.text("set transaction isolation level repeatable read, read only"))
        found = [finding for check in _SQL for finding in _found(c, check)]
        return [*found, *_legal_moves(c)], list(c.execute(_PICTURES))

    findings, pictures = in_transaction(engine, questions)
    return [*findings, *_missing_pictures(pictures, artifacts, looked)]


def count_violations(engine: sa.Engine, since_seconds: float) -> dict[Check, int]:
    """How many rows break each promise, without reading pictures.

    since_seconds -- checks that would read the whole table look at tasks that moved in so many last seconds, or at
                     those of the last 100 000 moves
    """

    def questions(c: sa.Connection) -> dict[Check, int]:
        longest = c.execute(_MANY_MOVES_AGO, {"most": _MOST_MOVES}).scalar_one_or_none()
        values = {"since": since_seconds if longest is None else min(since_seconds, longest)}
        counts = {
            check: int(
                c.execute(sa.text(f"select count(*) from ({sql.format(recent=_RECENT)}) as found"), values).scalar_one()
            )
            for check, sql in _SQL.items()
        }
        return counts | {Check.LEGAL_MOVES: len(_legal_moves(c))}

    return in_transaction(engine, questions)


def _found(c: sa.Connection, check: Check) -> list[Finding]:
    return [
        Finding(check=check, subject=row.subject, detail=row.detail)
        for row in c.execute(sa.text(_SQL[check].format(recent=_ALL)))
    ]


def _legal_moves(c: sa.Connection) -> list[Finding]:
    known = {(row.from_status, row.to_status) for row in c.execute(sa.text("select * from legal_moves"))}
    ours = {(str(before), str(after)) for before, after in LEGAL_MOVES}
    return [
        Finding(
            check=Check.LEGAL_MOVES,
            subject=f"{before} -> {after}",
            detail="allowed by the database alone" if (before, after) in known else "known to the code alone",
        )
        for before, after in sorted(known ^ ours)
    ]


def _missing_pictures(
    pictures: Iterable[sa.Row[tuple[object, ...]]], artifacts: Store, looked: Callable[[int], object]
) -> list[Finding]:
    """Completed tasks whose pictures are not in the store, or are not what was stored."""

    def look(row: sa.Row[tuple[object, ...]]) -> str | None:
        try:
            digest = artifacts.digest(row.key)
        except FileNotFoundError:
            return f"picture {row.index} is not in the store: {row.key}"
        return None if digest == row.sha256 else f"picture {row.index} has changed since it was stored: {row.key}"

    rows = list(pictures)
    findings = []
    with ThreadPoolExecutor(_READERS, thread_name_prefix="audit") as readers:
        try:
            for done, (row, fault) in enumerate(zip(rows, readers.map(look, rows), strict=True), 1):
                looked(len(rows) - done)
                if fault is not None:
                    findings.append(Finding(check=Check.MISSING_ARTIFACT, subject=str(row.id), detail=fault))
        finally:
            readers.shutdown(cancel_futures=True)
    return findings
