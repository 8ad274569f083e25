"""What people read about orders: the story of one, and how many are still on their way. Writes nothing."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from shared.database.engine import in_transaction
from shared.database.rows import TASK, task_of
from shared.domain.messages import Artifact
from shared.domain.task import Status, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One line of task_moves."""

    version: int
    at: datetime
    from_status: str | None
    to_status: str
    actor: str
    attempt: int
    backend: str | None
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LostRace:
    """One line of lost_races: a move that came too late, since somebody else had moved the row."""

    at: datetime
    actor: str
    attempt: int
    expected_status: str
    expected_version: int
    wanted_status: str
    reason: str | None
    found_status: str
    found_version: int
    found_attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try, as `attempts` has it."""

    attempt: int
    backend: str
    job_key: uuid.UUID
    seed: int
    started_at: datetime
    posted_at: datetime | None
    accepted_at: datetime | None
    provider_job_id: str | None
    ended_at: datetime | None
    outcome: str | None
    detail: str | None
    posts: int
    cost_estimated: float | None
    cost_actual: float | None
    cost_unit: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One dead letter of the order, and who sent it round again."""

    id: int
    at: datetime
    stage: str
    reason: str
    detail: str
    attempt: int | None
    state: str
    replays: Sequence[Mapping[str, Any]] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What a person did to the order by hand."""

    at: datetime
    by_whom: str
    action: str
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """Everything that is known of one order. duplicate_keys -- other keys that were kept with its task.

    lost_races -- the last ones, see races.py
    """

    task: Task
    moves: Sequence[Move]
    lost_races: Sequence[LostRace]
    attempts: Sequence[Attempt]
    artifacts: Sequence[tuple[int, datetime, Artifact]]
    letters: Sequence[Letter]
    actions: Sequence[Action]
    duplicate_keys: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where an order stands. `fingerprint` is that of the order which named the id first."""

    task_id: uuid.UUID
    status: Status
    attempt: int
    reason: str | None
    detail: str | None
    fingerprint: str


#: A key that was kept with another order's task answers with that task, as Tasks.find does.
_STANDING: Final = sa.text("""
select w.id as asked, t.id as task_id, t.status, t.attempt, t.reason, t.detail,
    coalesce(d.fingerprint, t.fingerprint) as fingerprint
from unnest(cast(:ids as uuid[])) as w(id)
left join duplicate_keys d on d.own_task_id = w.id
join tasks t on t.id = coalesce(d.task_id, w.id)
union all
select p.task_id, p.task_id, p.status, 0, null, 'it ended long ago and is purged', p.fingerprint
from purged_keys p where p.task_id = any(cast(:ids as uuid[]))
""")

_OF_ORDER: Final = sa.text(f"select {TASK} from tasks t where t.order_id = :order_id order by t.created_at desc")

_MOVES: Final = sa.text("""
select version, at, from_status, to_status, actor, attempt, backend, reason
from task_moves where task_id = :id order by version
""")

_LOST_RACES: Final = sa.text("""
select at, actor, attempt, expected_status, expected_version, wanted_status, reason, found_status, found_version,
    found_attempt
from lost_races where task_id = :id order by id
""")

_ATTEMPTS: Final = sa.text("""
select attempt, backend, job_key, seed, started_at, posted_at, accepted_at, provider_job_id, ended_at, outcome, detail,
    posts, cost_estimated, cost_actual, cost_unit
from attempts where task_id = :id order by attempt
""")

_PICTURES: Final = sa.text("""
select attempt, created_at, index, key, sha256, bytes, media_type, width, height
from artifacts where task_id = :id order by attempt, index
""")

_PICTURE: Final = sa.text("""
select index, key, sha256, bytes, media_type, width, height
from artifacts where task_id = :id and attempt = :attempt and index = :index
""")

_LETTERS: Final = sa.text("""
select d.id, d.at, d.stage, d.reason, d.detail, d.attempt, d.state, coalesce(
    (select json_agg(json_build_object('id', r.id, 'at', r.at, 'by_whom', r.by_whom, 'state', r.state,
                                       'result', r.result, 'closed_at', r.closed_at) order by r.id)
     from replays r where r.dead_letter_id = d.id), '[]') as replays
from dead_letters d where d.task_id = :id order by d.id
""")

#: Also replays of its letters that sent it to another pool, or to one backend alone.
_ACTIONS: Final = sa.text("""
select at, by_whom, action, detail from operator_actions
where subject = cast(:id as text) or (action = 'dead letter replay' and detail ?| '{to_pool,to_backend}'
    and subject = any(array(select cast(d.id as text) from dead_letters d where d.task_id = :id)))
order by id
""")

_KEPT_KEYS: Final = sa.text("select idempotency_key from duplicate_keys where task_id = :id order by at")

_TASK: Final = sa.text(f"select {TASK} from tasks t where t.id = :id")


class History:
    """Reads for people. Every method raises DatabaseAway and changes nothing."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def standings(self, ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, Standing]:
        """Where these orders stand, by the id they were asked for; those without a row are missing."""
        values = {"ids": [str(id_) for id_ in ids]}
        found: dict[uuid.UUID, Standing] = {}
        for row in in_transaction(self._engine, lambda c: c.execute(_STANDING, values).all()):
            values_of: dict[str, Any] = dict(row._mapping)
            asked = values_of.pop("asked")
            found[asked] = Standing(**values_of | {"status": Status(values_of["status"])})
        return found

    def of_order(self, order_id: str) -> list[Task]:
        """Every task of this order_id, the newest first; at most one of them is unfinished."""
        return in_transaction(
            self._engine, lambda c: [task_of(row) for row in c.execute(_OF_ORDER, {"order_id": order_id})]
        )

    def picture(self, task_id: uuid.UUID, attempt: int, index: int) -> Artifact | None:
        """One picture of one attempt."""
        values = {"id": task_id, "attempt": attempt, "index": index}
        row = in_transaction(self._engine, lambda c: c.execute(_PICTURE, values).one_or_none())
        return None if row is None else Artifact(**row._mapping)

    def story(self, task_id: uuid.UUID) -> Story | None:
        """Everything known of the task with this id, as of one moment."""

        def read(connection: sa.Connection) -> Story | None:
            connection.execute(sa.text("set transaction isolation level repeatable read, read only"))
            own = {"id": task_id}
            task = next((task_of(row) for row in connection.execute(_TASK, own)), None)
            if task is None:
                return None
            return Story(
                task=task,
                moves=[Move(**row._mapping) for row in connection.execute(_MOVES, own)],
                lost_races=[LostRace(**row._mapping) for row in connection.execute(_LOST_RACES, own)],
                attempts=[Attempt(**row._mapping) for row in connection.execute(_ATTEMPTS, own)],
                artifacts=[_picture(row) for row in connection.execute(_PICTURES, own)],
                letters=[Letter(**row._mapping) for row in connection.execute(_LETTERS, own)],
                actions=[Action(**row._mapping) for row in connection.execute(_ACTIONS, own)],
                duplicate_keys=list(connection.execute(_KEPT_KEYS, own).scalars()),
            )

        return in_transaction(self._engine, read)


def _picture(row: sa.Row[Any]) -> tuple[int, datetime, Artifact]:
    values: dict[str, Any] = dict(row._mapping)
    return values.pop("attempt"), values.pop("created_at"), Artifact(**values)
