"""The promises as questions to the database: each check answers with the rows that break one."""

import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

import sqlalchemy as sa

from shared.database import audit_sql
from shared.database.engine import in_transaction
from shared.domain.task import LEGAL_MOVES, said_in

#: Pictures read again at the same time.
_READERS: Final = 8
#: Keys asked for in one statement.
_KEYS: Final = 10_000


class Check(StrEnum):
    """What is checked."""

    DUPLICATE_TASK = "duplicate_task"
    DUPLICATE_ORDER = "duplicate_order"
    DOUBLE_SUBMIT = "double_submit"
    LOST_ORDER = "lost_order"
    MISSING_ARTIFACT = "missing_artifact"
    OVER_CAPACITY = "over_capacity"
    ZOMBIE = "zombie"
    MISSING_LETTER = "missing_letter"
    BAD_HISTORY = "bad_history"
    LEGAL_MOVES = "legal_moves"
    DOUBLE_JOB = "double_job"
    STRAY_JOB = "stray_job"
    UNACCOUNTED = "unaccounted"


#: The promise behind each check, in words for a person.
PROMISES: Final[Mapping[Check, str]] = {
    Check.DUPLICATE_TASK: "one task per key",
    Check.DUPLICATE_ORDER: "one active task per order_id",
    Check.DOUBLE_SUBMIT: "at most one known provider job per attempt, one accepted attempt per completed task",
    Check.LOST_ORDER: "every unfinished task has a moment at which somebody looks at it",
    Check.MISSING_ARTIFACT: "every finished task has its pictures, with the recorded hash, or a reason",
    Check.MISSING_LETTER: "every failed task has its dead letter",
    Check.OVER_CAPACITY: "no backend has more in flight than it takes, nor ever had when a row was taken",
    Check.ZOMBIE: "no finished task has owed its event, or a cancel to a server that is up, for over five minutes",
    Check.BAD_HISTORY: "every history is a chain of legal moves that ends in the status",
    Check.LEGAL_MOVES: "the database allows exactly the moves that the code knows",
    Check.DOUBLE_JOB: "no backend that answers or lists its jobs has one of ours twice, or one made for another",
    Check.STRAY_JOB: "nothing runs there for an attempt that is over, unless its cancel is still owed",
    Check.UNACCOUNTED: (
        "every given key has a task, is kept as a duplicate, is purged, has a dead letter or waits in a queue"
    ),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The attempt a provider job was made for. owes_nothing -- it is over, so nothing of it may run any more"""

    job_id: str
    task_id: uuid.UUID
    attempt: int
    backend: str
    status: str
    owes_nothing: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Posted:
    """An attempt whose POST left. said -- `workflow` and `inputs` of its order in the pool of the backend"""

    task_id: uuid.UUID
    attempt: int
    seed: int
    posts: int
    provider_job_id: str | None
    said: Mapping[str, object]


#: Subjects that `recent_violations` names of each check: who finds so many need not know how many more there are.
_MOST_SUBJECTS: Final = 10_000
#: Moves that it reads at most; of a busier time it looks at the end alone.
_MOST_MOVES: Final = 100_000
_MANY_MOVES_AGO: Final = sa.text(
    "select extract(epoch from now() - at)::float8 from task_moves order by at desc offset :most limit 1"
)

_SQL: Final[Mapping[Check, str]] = {
    Check.DUPLICATE_TASK: audit_sql.DUPLICATE_TASK,
    Check.DUPLICATE_ORDER: audit_sql.DUPLICATE_ORDER,
    Check.DOUBLE_SUBMIT: audit_sql.DOUBLE_SUBMIT,
    Check.LOST_ORDER: audit_sql.LOST_ORDER,
    Check.MISSING_ARTIFACT: audit_sql.MISSING_ARTIFACT,
    Check.MISSING_LETTER: audit_sql.MISSING_LETTER,
    Check.OVER_CAPACITY: audit_sql.OVER_CAPACITY,
    Check.ZOMBIE: audit_sql.ZOMBIE,
    Check.BAD_HISTORY: audit_sql.BAD_HISTORY,
}


def run_audit(engine: sa.Engine, artifacts: Store, looked: Callable[[int], object] = lambda _: None) -> list[Finding]:
    """Every broken promise, all rows looked at in one snapshot, and every picture of a completed task read again.

    looked -- told after each picture how many are left

    Raises DatabaseAway, StorageAway: nothing can be said then.
    """

    def questions(c: sa.Connection) -> tuple[list[Finding], list[sa.Row[tuple[object, ...]]]]:
        c.execute(sa.text("set transaction isolation level repeatable read, read only"))
        found = [finding for check in _SQL for finding in _found(c, check, _SQL[check])]
        now_over = {finding.subject for finding in found if finding.check is Check.OVER_CAPACITY}
        ever_over = _found(c, Check.OVER_CAPACITY, audit_sql.OVER_CAPACITY_EVER)
        found += [finding for finding in ever_over if finding.subject not in now_over]
        return [*found, *_legal_moves(c)], list(c.execute(sa.text(audit_sql.PICTURES)))

    findings, pictures = in_transaction(engine, questions)
    return [*findings, *_missing_pictures(pictures, artifacts, looked)]


def recent_violations(
    engine: sa.Engine, since_seconds: float, also: Collection[uuid.UUID] = ()
) -> dict[Check, list[str]]:
    """What breaks each promise, at most 10 000 subjects each, without reading pictures. Raises DatabaseAway.

    since_seconds -- checks that would read the whole table look at tasks that moved in so many last seconds, or at
                     those of the last 100 000 moves
    also          -- and at these tasks
    """

    def questions(c: sa.Connection) -> dict[Check, list[str]]:
        c.execute(sa.text("set transaction read only"))
        longest = c.execute(_MANY_MOVES_AGO, {"most": _MOST_MOVES}).scalar_one_or_none()
        values = {
            "since": since_seconds if longest is None else min(since_seconds, longest),
            "also": [str(task_id) for task_id in also],
            "most": _MOST_SUBJECTS,
        }
        found = {
            check: list(
                c.execute(
                    sa.text(f"select subject from ({sql.format(recent=audit_sql.RECENT)}) as found limit :most"), values
                ).scalars()
            )
            for check, sql in _SQL.items()
        }
        return found | {Check.LEGAL_MOVES: [finding.subject for finding in _legal_moves(c)]}

    return in_transaction(engine, questions)


def count_violations(engine: sa.Engine, since_seconds: float) -> dict[Check, int]:
    """How many they are."""
    return {check: len(subjects) for check, subjects in recent_violations(engine, since_seconds).items()}


def unaccounted(engine: sa.Engine, keys: Sequence[str]) -> list[str]:
    """The keys of published orders of which the database knows nothing. Raises DatabaseAway."""
    statement = sa.text(audit_sql.UNACCOUNTED)
    return in_transaction(
        engine,
        lambda c: [
            key
            for start in range(0, len(keys), _KEYS)
            for key in c.execute(statement, {"keys": list(keys[start : start + _KEYS])}).scalars()
        ],
    )


def owners(engine: sa.Engine, job_ids: Sequence[str]) -> dict[str, Owner]:
    """Whose each of these provider jobs is; jobs that are not ours are missing. Raises DatabaseAway."""
    values = {"ids": list(job_ids), "keys": [id_ for id_ in job_ids if _is_uuid(id_)]}
    rows = in_transaction(engine, lambda c: c.execute(sa.text(audit_sql.OWNERS), values).all())
    return {row.job_id: Owner(**row._mapping) for row in rows}


def posted(engine: sa.Engine, backend: str, since_seconds: float) -> list[Posted]:
    """The attempts whose first POST to this backend left within so many last seconds. Raises DatabaseAway."""
    values = {"backend": backend, "since": since_seconds}
    rows = in_transaction(engine, lambda c: c.execute(sa.text(audit_sql.POSTED), values).all())
    return [
        Posted(
            task_id=row.task_id,
            attempt=row.attempt,
            seed=row.seed,
            posts=row.posts,
            provider_job_id=row.provider_job_id,
            said=said_in(row.body or {}, row.pool),
        )
        for row in rows
    ]


def _found(c: sa.Connection, check: Check, sql: str) -> list[Finding]:
    return [
        Finding(check=check, subject=row.subject, detail=row.detail)
        for row in c.execute(sa.text(sql.format(recent=audit_sql.ALL)))
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


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
