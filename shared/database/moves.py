"""The one UPDATE that changes a status, for a batch of rows, by compare-and-set."""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from shared.database.prepared import prepared
from shared.database.rows import TASK, TASK_COLUMNS, task_of
from shared.domain.messages import Artifact
from shared.domain.task import Cost, Reason, Stage, Status, Task
from shared.observe.logs import redacted

_MAX_DETAIL_CHARS: Final = 8000

#: After a move to a final status its mover publishes the follow-up at once; when it dies first, the row comes due then.
FOLLOW_UP_GRACE_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One wanted move of a row somebody read as `task`. Seconds count from the transaction's start.

    due_in          -- next look; ignored for pending (its deadline) and for submitting -> cancelled (end of its lease)
    free_in         -- pending: how long the row backs off
    charge          -- whether the attempt that ends uses up a try
    attempt_outcome -- closes the row of `attempts` with this word
    deadline_in     -- replay: a new deadline, and all tries again
    job_handle      -- what the provider gave with its job id
    cost            -- what the attempt that ends has cost
    pool            -- pending: it goes on there, with all its tries; a pin ends with that
    pin             -- replay: the only backend that may make it from now on; None: any of its pool
    ended_at        -- when the job ended by the backend's own clock, Unix seconds; only measured
    """

    task: Task
    to: Status
    reason: Reason | str | None = None
    detail: str | None = None
    stage: Stage | None = None
    due_in: float = FOLLOW_UP_GRACE_SECONDS
    free_in: float = 0.0
    charge: bool = False
    provider_job_id: str | None = None
    cancel_owed: bool = False
    avoid_backend: str | None = None
    attempt_outcome: str | None = None
    artifacts: Sequence[Artifact] = ()
    deadline_in: float | None = None
    job_handle: Mapping[str, str] | None = None
    cost: Cost | None = None
    pool: str | None = None
    pin: str | None = None
    ended_at: float | None = None


_MOVE: Final = prepared(
    f"""
update tasks t set
    status = v.to_status,
    version = t.version + 1,
    changed_at = now(),
    actor = :actor,
    reason = v.reason,
    detail = v.detail,
    stage = v.stage,
    charged = case when v.deadline_in is not null or v.pool is not null then 0 else t.charged + v.charge end,
    pool = coalesce(v.pool, t.pool),
    pinned_backend = case when v.deadline_in is not null or v.pool is not null then v.pin else t.pinned_backend end,
    deadline_at = coalesce(now() + v.deadline_in * interval '1 second', t.deadline_at),
    finished_at = case when v.to_status in ('completed', 'failed', 'cancelled') then now() end,
    free_at = case when v.to_status = 'pending' then now() + v.free_in * interval '1 second' else t.free_at end,
    due_at = case
        when v.to_status = 'pending' then coalesce(now() + v.deadline_in * interval '1 second', t.deadline_at)
        when v.to_status = 'cancelled' and t.status = 'submitting' then greatest(t.free_at, now())
        else now() + v.due_in * interval '1 second' end,
    backend = case when v.to_status = 'pending' then null else t.backend end,
    job_key = case when v.to_status = 'pending' then null else t.job_key end,
    provider_job_id = case when v.to_status <> 'pending' then coalesce(v.provider_job_id, t.provider_job_id) end,
    job_handle = case when v.to_status = 'pending' then '{{}}' else coalesce(v.job_handle, t.job_handle) end,
    result_until = case when v.to_status = 'processing' then now() + interval '1 second'
        * (select b.result_ttl_seconds from backends b where b.name = t.backend) end,
    cancel_owed = v.cancel_owed,
    told_at = null,
    avoid_backend = coalesce(v.avoid_backend, t.avoid_backend)
from unnest(cast(:ids as uuid[]), cast(:versions as int[]), cast(:froms as text[]), cast(:tos as text[]),
            cast(:reasons as text[]), cast(:details as text[]), cast(:stages as text[]), cast(:dues as float8[]),
            cast(:frees as float8[]), cast(:charges as int[]), cast(:jobs as text[]), cast(:owed as bool[]),
            cast(:avoid as text[]), cast(:deadlines as float8[]), cast(:handles as jsonb[]), cast(:pools as text[]),
            cast(:pins as text[]))
    as v(id, version, from_status, to_status, reason, detail, stage, due_in, free_in, charge, provider_job_id,
         cancel_owed, avoid_backend, deadline_in, job_handle, pool, pin)
where t.id = v.id and t.version = v.version and t.status = v.from_status
returning {TASK}
""",
    *TASK_COLUMNS,
)

#: An unnest join updates in the order the planner likes; locking first fixes the order, so two overlapping batches
#: cannot deadlock. Not FOR UPDATE: rows that refer to these may be written meanwhile, by somebody who waits for us.
LOCK_IN_ORDER: Final = prepared(
    "select 1 from tasks where id = any(cast(:ids as uuid[])) order by id for no key update"
)

_END_ATTEMPTS: Final = prepared("""
update attempts a set ended_at = now(), outcome = v.outcome, detail = v.detail,
    provider_job_id = coalesce(v.provider_job_id, a.provider_job_id), cost_actual = v.cost,
    cost_unit = coalesce(v.cost_unit, a.cost_unit)
from unnest(cast(:ids as uuid[]), cast(:attempts as int[]), cast(:outcomes as text[]), cast(:details as text[]),
            cast(:jobs as text[]), cast(:costs as float8[]), cast(:units as text[]))
    as v(task_id, attempt, outcome, detail, provider_job_id, cost, cost_unit)
where a.task_id = v.task_id and a.attempt = v.attempt and a.ended_at is null
""")

_STORE: Final = prepared("""
insert into artifacts (task_id, attempt, index, key, sha256, bytes, media_type, width, height)
select * from unnest(cast(:ids as uuid[]), cast(:attempts as int[]), cast(:indexes as int[]), cast(:keys as text[]),
                     cast(:hashes as text[]), cast(:sizes as bigint[]), cast(:types as text[]),
                     cast(:widths as int[]), cast(:heights as int[]))
on conflict (task_id, attempt, index) do nothing
""")

#: The item of a plan ends with its replay, so that whoever looks at a plan sees results and not guesses.
_CLOSE_REPLAYS: Final = prepared("""
with closed as (
    update replays r set state = 'closed', closed_at = now(), result = t.status
    from tasks t where r.task_id = t.id and t.id = any(cast(:ids as uuid[])) and r.state = 'open'
    returning r.id, r.result
)
update plan_items i set state = 'ended', result = closed.result, ended_at = now() from closed
where i.replay_id = closed.id and i.state = 'sent'
""")


def move_in(connection: sa.Connection, changes: Sequence[Change], actor: str) -> dict[uuid.UUID, Task]:
    """Make the moves that still apply, inside the caller's transaction; rows that moved on are missing from the answer.

    Rows are updated in the order of their ids, so two overlapping batches cannot deadlock.
    """
    if not changes:
        return {}
    ordered = sorted(changes, key=lambda change: change.task.id)
    if len(ordered) > 1:
        connection.execute(LOCK_IN_ORDER, {"ids": [str(change.task.id) for change in ordered]})
    rows = connection.execute(_MOVE, _columns(ordered, actor)).all()
    moved = {row.id: task_of(row) for row in rows}
    applied = [change for change in ordered if change.task.id in moved]
    _end_attempts(connection, applied)
    _store(connection, applied)
    if any(task.status.is_final for task in moved.values()):
        connection.execute(_CLOSE_REPLAYS, {"ids": [str(task.id) for task in moved.values() if task.status.is_final]})
    return moved


def _columns(changes: Sequence[Change], actor: str) -> Mapping[str, Any]:
    return {
        "actor": actor,
        "ids": [str(change.task.id) for change in changes],
        "versions": [change.task.version for change in changes],
        "froms": [change.task.status for change in changes],
        "tos": [change.to for change in changes],
        "reasons": [change.reason for change in changes],
        "details": [_storable(change.detail) for change in changes],
        "stages": [change.stage for change in changes],
        "dues": [change.due_in for change in changes],
        "frees": [change.free_in for change in changes],
        "charges": [int(change.charge) for change in changes],
        "jobs": [change.provider_job_id for change in changes],
        "owed": [change.cancel_owed for change in changes],
        "avoid": [change.avoid_backend for change in changes],
        "deadlines": [change.deadline_in for change in changes],
        "pools": [change.pool for change in changes],
        "pins": [change.pin for change in changes],
        "handles": [None if change.job_handle is None else json.dumps(dict(change.job_handle)) for change in changes],
    }


def _end_attempts(connection: sa.Connection, changes: Sequence[Change]) -> None:
    ended = [change for change in changes if change.attempt_outcome is not None and change.task.attempt]
    if ended:
        connection.execute(
            _END_ATTEMPTS,
            {
                "ids": [str(change.task.id) for change in ended],
                "attempts": [change.task.attempt for change in ended],
                "outcomes": [change.attempt_outcome for change in ended],
                "details": [_storable(change.detail) for change in ended],
                "jobs": [change.provider_job_id for change in ended],
                "costs": [change.cost and change.cost.amount for change in ended],
                "units": [change.cost and change.cost.unit for change in ended],
            },
        )


def _store(connection: sa.Connection, changes: Sequence[Change]) -> None:
    pictures = [(change.task, artifact) for change in changes for artifact in change.artifacts]
    if pictures:
        connection.execute(
            _STORE,
            {
                "ids": [str(task.id) for task, _ in pictures],
                "attempts": [task.attempt for task, _ in pictures],
                "indexes": [artifact.index for _, artifact in pictures],
                "keys": [artifact.key for _, artifact in pictures],
                "hashes": [artifact.sha256 for _, artifact in pictures],
                "sizes": [artifact.bytes for _, artifact in pictures],
                "types": [artifact.media_type for _, artifact in pictures],
                "widths": [artifact.width for _, artifact in pictures],
                "heights": [artifact.height for _, artifact in pictures],
            },
        )


def _storable(text: str | None) -> str | None:
    """Text PostgreSQL can hold and people may see: error texts of foreign systems may carry NUL, half characters, and
    what they were sent: keys, signed addresses.
    """
    if text is None:
        return None
    return redacted(text.replace("\x00", "").encode("utf-8", "replace").decode(), _MAX_DETAIL_CHARS - 1)
