"""Intake's writes: one task per idempotency key, one active task per order_id, whoever comes at the same time."""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Any, Final

import sqlalchemy as sa

from shared.database.engine import in_transaction
from shared.database.prepared import prepared
from shared.database.rows import PRIORITIES, TASK, TASK_COLUMNS, task_of
from shared.domain.task import Priority, Status, Task, task_id_for


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


@dataclass(frozen=True, slots=True)
class Purged:
    """The key's order ended long ago, and its row is gone. is_same -- this is that very order once more"""

    task_id: uuid.UUID
    status: Status
    is_same: bool


#: Copies of one order_id are claimed one after the other: otherwise one copy could become a task and another
#: be kept as a duplicate of the task that ended in between. And those of one key: otherwise one could be kept as a
#: duplicate while another, whose order_id is free, becomes a task. All in one order, so batches cannot deadlock.
LOCK_NAMES: Final = prepared("""
select pg_advisory_xact_lock(s.lock) from (
    select hashtextextended(o, 722) as lock from unnest(cast(:order_ids as text[])) o
    union select hashtextextended(k, 723) from unnest(cast(:keys as text[])) k
    order by 1) s
""")

_INSERT: Final = prepared(
    f"""
insert into tasks as t
    (id, idempotency_key, order_id, fingerprint, pool, priority, body, deadline_at, due_at, actor, trace_id)
select v.id, v.key, v.order_id, v.fingerprint, v.pool, v.priority, v.body,
       now() + v.deadline * interval '1 second', now() + v.deadline * interval '1 second', :actor, v.trace_id
from unnest(cast(:ids as uuid[]), cast(:keys as text[]), cast(:order_ids as text[]), cast(:fingerprints as text[]),
            cast(:pools as text[]), cast(:priorities as smallint[]), cast(:bodies as jsonb[]),
            cast(:deadlines as float8[]), cast(:traces as text[]))
    as v(id, key, order_id, fingerprint, pool, priority, body, deadline, trace_id)
where not exists (select 1 from duplicate_keys d where d.idempotency_key = v.key)
    and not exists (select 1 from purged_keys p where p.idempotency_key = v.key)
on conflict do nothing
returning {TASK}
""",
    *TASK_COLUMNS,
)

_BY_KEY: Final = sa.text(f"select {TASK} from tasks t where t.idempotency_key = any(:keys)")

_KEPT: Final = sa.text(
    f"select d.idempotency_key as kept_key, d.fingerprint as kept_fingerprint, {TASK}"
    " from duplicate_keys d join tasks t on t.id = d.task_id where d.idempotency_key = any(:keys)"
)

_ACTIVE: Final = sa.text(
    f"select {TASK} from tasks t"
    " where t.order_id = any(:order_ids) and t.status in ('pending', 'submitting', 'processing')"
)

_KEEP: Final = sa.text("""
insert into duplicate_keys (idempotency_key, task_id, own_task_id, fingerprint)
select * from unnest(cast(:keys as text[]), cast(:task_ids as uuid[]), cast(:own_ids as uuid[]),
                     cast(:fingerprints as text[]))
on conflict do nothing returning idempotency_key
""")

_PURGED: Final = sa.text(
    "select idempotency_key, task_id, fingerprint, status from purged_keys where idempotency_key = any(:keys)"
)

#: Between two tries an active task can only end, so a second round nearly always finds a place.
_ROUNDS: Final = 5


@dataclass(frozen=True, slots=True)
class _Held:
    """Who holds a key. fingerprint -- of the order that came with the key, which need not be the task's own."""

    claimed: Claimed | Purged
    fingerprint: str


def claim(engine: sa.Engine, claims: Sequence[Claim], actor: str) -> list[Claimed | Purged]:
    """Claim a batch in one transaction per round; of several with one key or one order_id the first one in it wins."""
    first_of: dict[str, int] = {}
    for place, wanted in enumerate(claims):
        first_of.setdefault(wanted.idempotency_key, place)
    held: dict[str, _Held] = {}
    for _ in range(_ROUNDS):
        batch = [claims[place] for key, place in first_of.items() if key not in held]
        if not batch:
            break
        held |= in_transaction(engine, partial(_claim, claims=_in_lock_order(batch), actor=actor))
    missing = first_of.keys() - held.keys()
    if missing:
        raise RuntimeError(f"{len(missing)} claims found neither their key nor an active task in {_ROUNDS} rounds")
    return [
        _answer(c, held[c.idempotency_key], is_first=place == first_of[c.idempotency_key])
        for place, c in enumerate(claims)
    ]


def _in_lock_order(claims: Sequence[Claim]) -> list[Claim]:
    """Two overlapping batches must insert common keys in one order, or they deadlock.

    Claims that share an order_id are already serialised by its lock and stay in the order they came.
    """
    return sorted(claims, key=lambda c: "" if c.order_id is not None else c.idempotency_key)


def _answer(claim: Claim, held: _Held, *, is_first: bool) -> Claimed | Purged:
    found = held.claimed
    if is_first:
        return found
    if isinstance(found, Purged):
        return replace(found, is_same=claim.fingerprint == held.fingerprint)
    if claim.fingerprint != held.fingerprint:
        return Claimed(ClaimResult.CONFLICT, found.task, is_new=False)
    is_kept = claim.idempotency_key != found.task.idempotency_key
    return Claimed(ClaimResult.ACTIVE_ORDER if is_kept else ClaimResult.DUPLICATE, found.task, is_new=False)


def _claim(connection: sa.Connection, claims: Sequence[Claim], actor: str) -> dict[str, _Held]:
    order_ids = [c.order_id for c in claims if c.order_id is not None]
    connection.execute(LOCK_NAMES, {"order_ids": order_ids, "keys": [c.idempotency_key for c in claims]})
    rows = connection.execute(_INSERT, _columns(claims, actor)).all()
    held = {r.idempotency_key: _Held(Claimed(ClaimResult.WON, task_of(r), is_new=True), r.fingerprint) for r in rows}
    # Statements of their own on purpose: they see the rows that made the insert step aside.
    waiting = {c.idempotency_key: c for c in claims if c.idempotency_key not in held}
    if waiting:
        for row in connection.execute(_BY_KEY, {"keys": list(waiting)}):
            same = row.fingerprint == waiting.pop(row.idempotency_key).fingerprint
            result = ClaimResult.DUPLICATE if same else ClaimResult.CONFLICT
            held[row.idempotency_key] = _Held(Claimed(result, task_of(row), is_new=False), row.fingerprint)
    if waiting:
        for row in connection.execute(_KEPT, {"keys": list(waiting)}):
            same = row.kept_fingerprint == waiting.pop(row.kept_key).fingerprint
            result = ClaimResult.ACTIVE_ORDER if same else ClaimResult.CONFLICT
            held[row.kept_key] = _Held(Claimed(result, task_of(row), is_new=False), row.kept_fingerprint)
    if waiting:
        for row in connection.execute(_PURGED, {"keys": list(waiting)}):
            same = row.fingerprint == waiting.pop(row.idempotency_key).fingerprint
            purged = Purged(row.task_id, Status(row.status), is_same=same)
            held[row.idempotency_key] = _Held(purged, row.fingerprint)
    return held | _keep(connection, list(waiting.values()))


def _keep(connection: sa.Connection, claims: Sequence[Claim]) -> dict[str, _Held]:
    """Keep the keys of orders whose order_id has an active task. The others are missing: it ended in between."""
    order_ids = [c.order_id for c in claims if c.order_id is not None]
    if not order_ids:
        return {}
    active = {row.order_id: task_of(row) for row in connection.execute(_ACTIVE, {"order_ids": order_ids})}
    kept = [(c, active[c.order_id]) for c in claims if c.order_id in active]
    values = {
        "keys": [c.idempotency_key for c, _ in kept],
        "task_ids": [str(task.id) for _, task in kept],
        "own_ids": [str(_id(c)) for c, _ in kept],
        "fingerprints": [c.fingerprint for c, _ in kept],
    }
    new = {row.idempotency_key for row in connection.execute(_KEEP, values)}
    return {
        c.idempotency_key: _Held(
            Claimed(ClaimResult.ACTIVE_ORDER, task, is_new=c.idempotency_key in new), c.fingerprint
        )
        for c, task in kept
    }


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
