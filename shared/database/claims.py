"""Intake's writes: one task per idempotency key, one active task per order_id, whoever comes at the same time."""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa

from shared.database.engine import in_transaction
from shared.database.rows import PRIORITIES, TASK, task_of
from shared.domain.task import Priority, Task, task_id_for


class ClaimResult(StrEnum):
    WON = "won"  # the row is new
    DUPLICATE = "duplicate"  # same key, same order: the row of the first one
    CONFLICT = "conflict"  # same key, another order: the first one is untouched
    ACTIVE_ORDER = "active_order"  # another key, but its order_id has an active task: that task


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """An order to claim. `body` is None when only its key could be read; the row then exists to say why it failed."""

    idempotency_key: str
    order_id: str | None
    fingerprint: str
    pool: str
    priority: Priority
    deadline_seconds: float
    body: Mapping[str, Any] | None
    trace_id: str


@dataclass(frozen=True, slots=True)
class Claimed:
    """What became of a claim. is_new -- for ACTIVE_ORDER: the key was kept just now, not by an earlier copy."""

    result: ClaimResult
    task: Task
    is_new: bool


#: Copies of one order_id are claimed one after the other: otherwise one copy could become a task and another
#: be kept as a duplicate of the task that ended in between.
_LOCK_ORDER_IDS: Final = sa.text("""
select pg_advisory_xact_lock(hashtextextended(s.order_id, 722)) from
    (select distinct o as order_id from unnest(cast(:order_ids as text[])) o order by 1) s
""")

_INSERT: Final = sa.text(f"""
insert into tasks as t
    (id, idempotency_key, order_id, fingerprint, pool, priority, body, deadline_at, due_at, actor, trace_id)
select v.id, v.key, v.order_id, v.fingerprint, v.pool, v.priority, v.body,
       now() + v.deadline * interval '1 second', now() + v.deadline * interval '1 second', :actor, v.trace_id
from unnest(cast(:ids as uuid[]), cast(:keys as text[]), cast(:order_ids as text[]), cast(:fingerprints as text[]),
            cast(:pools as text[]), cast(:priorities as smallint[]), cast(:bodies as jsonb[]),
            cast(:deadlines as float8[]), cast(:traces as text[]))
    as v(id, key, order_id, fingerprint, pool, priority, body, deadline, trace_id)
where not exists (select 1 from duplicate_keys d where d.idempotency_key = v.key)
on conflict do nothing
returning {TASK}
""")

_BY_KEY: Final = sa.text(f"select {TASK} from tasks t where t.idempotency_key = any(:keys)")

_KEPT: Final = sa.text(
    f"select d.idempotency_key as kept_key, d.fingerprint as kept_fingerprint, {TASK}"
    " from duplicate_keys d join tasks t on t.id = d.task_id where d.idempotency_key = any(:keys)"
)

_ACTIVE: Final = sa.text(
    f"select {TASK} from tasks t where t.order_id = :order_id and t.status in ('pending', 'submitting', 'processing')"
)

_KEEP: Final = sa.text("""
insert into duplicate_keys (idempotency_key, task_id, own_task_id, fingerprint)
values (:key, :task_id, :own_task_id, :fingerprint) on conflict do nothing
""")

#: Between two tries an active task can only end, so a second round nearly always finds a place.
_ROUNDS: Final = 5


def claim(engine: sa.Engine, claims: Sequence[Claim], actor: str) -> list[Claimed]:
    """Claim a batch, in its order, in one transaction per round. The same key may stand in the batch several times."""
    first_of = {c.idempotency_key: c for c in reversed(claims)}
    answers: dict[str, Claimed] = {}
    for _ in range(_ROUNDS):
        open_claims = [c for key, c in first_of.items() if key not in answers]
        if not open_claims:
            break
        answers |= in_transaction(engine, lambda connection, batch=open_claims: _claim(connection, batch, actor))  # type: ignore[misc]  # mypy cannot type a lambda with a default
    missing = first_of.keys() - answers.keys()
    if missing:
        raise RuntimeError(f"{len(missing)} claims found neither their key nor an active task in {_ROUNDS} rounds")
    return [_answer(c, answers[c.idempotency_key], is_first=c is first_of[c.idempotency_key]) for c in claims]


def _answer(claim: Claim, found: Claimed, *, is_first: bool) -> Claimed:
    if is_first:
        return found
    if found.result is ClaimResult.ACTIVE_ORDER:
        return Claimed(ClaimResult.ACTIVE_ORDER, found.task, is_new=False)
    same = found.result is not ClaimResult.CONFLICT and found.task.fingerprint == claim.fingerprint
    return Claimed(ClaimResult.DUPLICATE if same else ClaimResult.CONFLICT, found.task, is_new=False)


def _claim(connection: sa.Connection, claims: Sequence[Claim], actor: str) -> dict[str, Claimed]:
    order_ids = [c.order_id for c in claims if c.order_id is not None]
    if order_ids:
        connection.execute(_LOCK_ORDER_IDS, {"order_ids": order_ids})
    rows = connection.execute(_INSERT, _columns(claims, actor)).all()
    answers = {row.idempotency_key: Claimed(ClaimResult.WON, task_of(row), is_new=True) for row in rows}
    # A second statement on purpose: it sees the rows that made the insert step aside.
    waiting = {c.idempotency_key: c for c in claims if c.idempotency_key not in answers}
    if not waiting:
        return answers
    for row in connection.execute(_BY_KEY, {"keys": list(waiting)}):
        known = waiting.pop(row.idempotency_key)
        same = row.fingerprint == known.fingerprint
        result = ClaimResult.DUPLICATE if same else ClaimResult.CONFLICT
        answers[row.idempotency_key] = Claimed(result, task_of(row), is_new=False)
    if waiting:
        for row in connection.execute(_KEPT, {"keys": list(waiting)}):
            values = row._mapping
            known = waiting.pop(values["kept_key"])
            same = values["kept_fingerprint"] == known.fingerprint
            task = task_of(connection.execute(_BY_KEY, {"keys": [values["idempotency_key"]]}).one())
            result = ClaimResult.ACTIVE_ORDER if same else ClaimResult.CONFLICT
            answers[values["kept_key"]] = Claimed(result, task, is_new=False)
    for key, left in waiting.items():
        active = connection.execute(_ACTIVE, {"order_id": left.order_id}).one_or_none()
        if active is not None:
            kept = connection.execute(
                _KEEP,
                {
                    "key": key,
                    "task_id": active.id,
                    "own_task_id": task_id_for(key),
                    "fingerprint": left.fingerprint,
                },
            )
            answers[key] = Claimed(ClaimResult.ACTIVE_ORDER, task_of(active), is_new=kept.rowcount == 1)
    return answers


def _columns(claims: Sequence[Claim], actor: str) -> Mapping[str, Any]:
    return {
        "actor": actor,
        "ids": [str(_id(c)) for c in claims],
        "keys": [c.idempotency_key for c in claims],
        "order_ids": [c.order_id for c in claims],
        "fingerprints": [c.fingerprint for c in claims],
        "pools": [c.pool for c in claims],
        "priorities": [PRIORITIES.index(c.priority) for c in claims],
        "bodies": [None if c.body is None else json.dumps(c.body) for c in claims],
        "deadlines": [c.deadline_seconds for c in claims],
        "traces": [c.trace_id for c in claims],
    }


def _id(claim: Claim) -> uuid.UUID:
    return task_id_for(claim.idempotency_key)
