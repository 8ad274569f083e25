"""Every read and write of `tasks` outside of claiming and taking slots: one method, one transaction, one sentence."""

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from shared.database.actions import note_action
from shared.database.claims import Claim, Claimed, Purged, claim
from shared.database.engine import in_transaction
from shared.database.measured import Counter, count_forbidden, count_moves, timed
from shared.database.moves import LOCK_IN_ORDER, Change, move_in
from shared.database.prepared import prepared
from shared.database.races import note_lost
from shared.database.rooms import TAKES_WORK
from shared.database.rows import TASK, TASK_COLUMNS, task_of
from shared.domain.messages import Artifact
from shared.domain.outcome import FollowUp
from shared.domain.task import Accepted, Reason, Sent, Status, Task
from shared.observe.crash import CrashPoint, crash_point

__all__ = ["FRESH_SECONDS", "Counter", "Tasks"]

_BY_ID: Final = prepared(f"select {TASK} from tasks t where t.id = any(cast(:ids as uuid[]))", *TASK_COLUMNS)

_FIND: Final = sa.text(
    f"select {TASK} from tasks t where t.id = :id"
    " or t.id = (select d.task_id from duplicate_keys d where d.own_task_id = :id)"
)

_PURGED: Final = sa.text("select status from purged_keys where task_id = :id")
_KEPT_FINGERPRINT: Final = sa.text("select d.fingerprint from duplicate_keys d where d.own_task_id = :id")

#: Who still owns the row owns it for nearly a whole lease from here on, so looking and preparing never eat up the time
#: of the POST. A lease that was just given stays as it is, since writing free_at and due_at costs six index entries;
#: one that ran out unnoticed is renewed: whoever takes a row over gives it another version. posted_at goes in with the
#: body's hash in the same statement, so nobody POSTs unseen.
FRESH_SECONDS: Final = 1.0
_BEGIN_POSTS: Final = prepared("""
with owned as (
    select t.id, t.version, t.attempt, t.free_at, v.body_hash from tasks t
    join unnest(cast(:ids as uuid[]), cast(:versions as int[]), cast(:hashes as text[])) as v(id, version, body_hash)
        on t.id = v.id and t.version = v.version
    where t.status = 'submitting' and t.deadline_at > clock_timestamp()
), renewed as (
    update tasks t set free_at = now() + :lease * interval '1 second', due_at = now() + :lease * interval '1 second'
    from owned where t.id = owned.id and owned.free_at < now() + (cast(:lease as float8) - :fresh) * interval '1 second'
)
update attempts a set body_hash = owned.body_hash, posted_at = coalesce(a.posted_at, clock_timestamp()),
    posts = a.posts + 1
from owned where a.task_id = owned.id and a.attempt = owned.attempt
returning owned.id, owned.version
""")

_ACCEPTED: Final = prepared("""
update attempts a set provider_job_id = v.job, accepted_at = coalesce(a.accepted_at, now()),
    cost_estimated = v.cost, cost_unit = v.unit
from unnest(cast(:ids as uuid[]), cast(:attempts as int[]), cast(:jobs as text[]), cast(:costs as float8[]),
            cast(:units as text[])) as v(id, attempt, job, cost, unit)
where a.task_id = v.id and a.attempt = v.attempt
""")

_ACCEPTED_AS: Final = sa.text("select a.provider_job_id from attempts a where a.task_id = :id and a.attempt = :attempt")

_SENT: Final = sa.text("""
select posts, looks, posted_at as first_at, provider_job_id, clock_timestamp() as now from attempts
where task_id = :id and attempt = :attempt
""")

#: For a row we own: whoever takes it over gives it another version.
_OWN: Final = sa.text("""
with owned as (
    update tasks t set free_at = now() + :seconds * interval '1 second', due_at = now() + :seconds * interval '1 second'
    where t.id = :id and t.version = :version and t.status = 'submitting' returning t.id, t.attempt
)
update attempts a set looks = a.looks + :looks from owned where a.task_id = owned.id and a.attempt = owned.attempt
returning a.task_id
""")

#: A tenth of the time may pass before a row is written again, so a job that runs costs few writes.
_SEEN_RUNNING: Final = sa.text("""
update tasks t set result_until = now() + b.result_ttl_seconds * interval '1 second'
from backends b
where b.name = t.backend and t.id = any(cast(:ids as uuid[])) and t.status = 'processing'
    and t.result_until < now() + 0.9 * b.result_ttl_seconds * interval '1 second'
""")

#: Only the next look is written, so a row that is being moved meanwhile is not disturbed. A final row whose
#: follow-up goes wrong is not looked at as often as a running job.
_NEXT_LOOK: Final = """update tasks t set due_at = case
    when t.status = 'processing' then now() + :next_look * interval '1 second'
    when t.status = 'submitting' then greatest(t.free_at, now() + :next_look * interval '1 second')
    else now() + interval '30 seconds' end"""

_TAKE_DUE: Final = prepared(
    f"""
with due as (
    select id, due_at from tasks where due_at <= now() and (status = 'pending' or pool <> all(:skip_pools))
    order by result_until nulls last, due_at limit :limit for update skip locked
)
{_NEXT_LOOK} from due where t.id = due.id
returning extract(epoch from now() - due.due_at)::float8 as late_by, {TASK}
""",
    "late_by",
    *TASK_COLUMNS,
)

_AT_WORK: Final = prepared(
    f"""
select {TASK} from tasks t
where t.backend = :backend and (t.status = 'processing' and t.provider_job_id = any(:job_ids)
    or t.status = 'submitting' and t.job_key::text = any(:job_ids) and t.free_at > now())
""",
    *TASK_COLUMNS,
)

_CLEAR_DUE: Final = prepared("""
update tasks t set told_at = coalesce(t.told_at, now()), cancel_owed = t.cancel_owed and v.still_owed,
    due_at = case when t.cancel_owed and v.still_owed then t.due_at end
from unnest(cast(:ids as uuid[]), cast(:versions as int[]), cast(:owed as bool[])) as v(id, version, still_owed)
where t.id = v.id and t.version = v.version and t.due_at is not null
    and t.status in ('completed', 'failed', 'cancelled')
returning t.pool, case when t.told_at = now() then extract(epoch from now() - t.changed_at)::float8 end as told_after
""")

#: In each pool no further than anybody wants to know; the order is there to have it read along tasks_free.
_FREE: Final = sa.text(f"""
select p.pool, (
    select count(*) from (
        select 1 from tasks t where t.pool = p.pool and t.status in ('pending', 'submitting') and t.free_at <= now()
            and (t.pinned_backend is null or t.status = 'submitting'
                or t.pinned_backend = any(array(select b.name from backends b where {TAKES_WORK})))
        order by t.priority desc, t.created_at limit p.most
    ) counted) as rows
from unnest(cast(:pools as text[]), cast(:most as int[])) as p(pool, most)
""")

_ARTIFACTS: Final = sa.text("""
select a.task_id, a.index, a.key, a.sha256, a.bytes, a.media_type, a.width, a.height
from artifacts a join tasks t on t.id = a.task_id and t.attempt = a.attempt
where a.task_id = any(cast(:ids as uuid[])) and t.status = 'completed' order by a.task_id, a.index
""")


#: The version is that of a row nobody has moved since; of one that moved on nothing is noted.
_BEGIN_ALONE: Final = sa.text("""
update attempts a set deaths = a.deaths + 1 from tasks t
where t.id = :id and t.version = :version and a.task_id = t.id and a.attempt = t.attempt
returning a.deaths - 1 as before
""")

_SURVIVED: Final = sa.text("update attempts set deaths = 0 where task_id = :id and attempt = :attempt and deaths > 0")

_ENDED_WITH: Final = sa.text("""
select count(*) from attempts a where a.task_id = :id and a.outcome = :outcome and a.attempt > coalesce(
    (select max(m.attempt) from task_moves m where m.task_id = :id and m.from_status = 'failed'), 0)
""")


#: Where a process dies that is armed to die behind such a move.
_MOVED: Final[Mapping[tuple[Status, Status], CrashPoint]] = {
    (Status.PENDING, Status.FAILED): CrashPoint.UNSTARTED_FAILED,
    (Status.SUBMITTING, Status.FAILED): CrashPoint.SUBMISSION_FAILED,
    (Status.SUBMITTING, Status.PENDING): CrashPoint.ROW_GIVEN_BACK,
    (Status.SUBMITTING, Status.PROCESSING): CrashPoint.RECORD_COMMITTED,
    **dict.fromkeys(
        [(Status.SUBMITTING, Status.COMPLETED), (Status.PROCESSING, Status.COMPLETED)], CrashPoint.COMPLETED_COMMITTED
    ),
    (Status.PROCESSING, Status.PENDING): CrashPoint.RETRY_COMMITTED,
    (Status.PROCESSING, Status.FAILED): CrashPoint.JOB_FAILED,
}


#: What else belongs into the transaction of some moves, given the moves that were made.
_Also = Callable[[sa.Connection, Mapping[uuid.UUID, Task]], object]


class Tasks:
    """The table `tasks`, written in the name of `actor`. Safe to use from many threads."""

    def __init__(self, engine: sa.Engine, actor: str, metrics: Counter) -> None:
        self._engine = engine
        self._actor = actor
        self._metrics = metrics

    def claim(self, claims: Sequence[Claim]) -> list[Claimed | Purged]:
        """One answer per claim, in order. Raises DatabaseAway: claim again, the outcome is the same."""
        if not claims:
            return []
        with timed(self._metrics, "claim"):
            claimed = claim(self._engine, claims, self._actor)
        crash_point(CrashPoint.CLAIM_COMMITTED)
        return claimed

    def get(self, ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, Task]:
        """The rows of these ids; unknown ones are missing."""
        wanted = [str(id_) for id_ in ids]
        return in_transaction(
            self._engine, lambda connection: {r.id: task_of(r) for r in connection.execute(_BY_ID, {"ids": wanted})}
        )

    def find(self, task_id: uuid.UUID) -> Task | None:
        """The row that answers for this id: its own, or the active task its key was kept with."""
        return in_transaction(
            self._engine,
            lambda connection: next((task_of(row) for row in connection.execute(_FIND, {"id": task_id})), None),
        )

    def purged(self, task_id: uuid.UUID) -> Status | None:
        """How the order of this id ended, where its row is purged; None where it is not, or nobody knows any more."""
        status = in_transaction(self._engine, lambda c: c.execute(_PURGED, {"id": task_id}).scalar_one_or_none())
        return None if status is None else Status(status)

    def kept_fingerprint(self, task_id: uuid.UUID) -> str | None:
        """The fingerprint of the order that named this id, where its key made no task and was kept with another's."""
        return in_transaction(
            self._engine, lambda c: c.execute(_KEPT_FINGERPRINT, {"id": task_id}).scalar_one_or_none()
        )

    def move(self, changes: Sequence[Change]) -> dict[uuid.UUID, Task]:
        """Make the moves whose rows are still as they were read; the others are missing: re-read them, then decide.

        Raises IntegrityError for a pair that is not legal, and then nothing of the batch has moved.
        """
        return self._move(changes) if changes else {}

    def move_each(self, changes: Sequence[Change]) -> list[Task | None]:
        """The same for changes of many threads, one answer each. Of several of one row its newest reader's counts."""
        return self._move_each(changes)

    def _move_each(self, changes: Sequence[Change], also: _Also | None = None) -> list[Task | None]:
        newest: dict[uuid.UUID, Change] = {}
        for change in changes:
            kept = newest.get(change.task.id)
            if kept is None or kept.task.version < change.task.version:
                newest[change.task.id] = change
        moved = self._move(list(newest.values()), also)
        return [moved.get(change.task.id) if newest[change.task.id] is change else None for change in changes]

    def _move(self, changes: Sequence[Change], also: _Also | None = None) -> dict[uuid.UUID, Task]:
        def work(connection: sa.Connection) -> dict[uuid.UUID, Task]:
            made = move_in(connection, changes, self._actor)
            note_lost(connection, changes, made, self._actor)
            if also is not None:
                also(connection, made)
            return made

        try:
            with timed(self._metrics, "move"):
                moved = in_transaction(self._engine, work)
        except sa.exc.IntegrityError:
            count_forbidden(self._metrics, changes)
            raise
        for change in changes:
            if change.task.id in moved:
                crash_point(_MOVED.get, (change.task.status, change.to))
        count_moves(self._metrics, changes, moved)
        return moved

    def may_post(self, posts: Sequence[tuple[Task, str]], lease_seconds: float) -> list[bool]:
        """Note that these POSTs leave now, with the hash of each body, and own the rows for one lease from here on.

        FRESH_SECONDS of it may be over. One answer each. False: nothing may be sent, since the row is not ours any more
        or past its deadline. Safe to repeat.
        """
        ordered = sorted(posts, key=lambda post: post[0].id)
        values = {
            "ids": [str(task.id) for task, _ in ordered],
            "versions": [task.version for task, _ in ordered],
            "hashes": [body_hash for _, body_hash in ordered],
            "lease": lease_seconds,
            "fresh": FRESH_SECONDS,
        }

        def work(connection: sa.Connection) -> set[tuple[uuid.UUID, int]]:
            connection.execute(LOCK_IN_ORDER, {"ids": values["ids"]})
            return {(row.id, row.version) for row in connection.execute(_BEGIN_POSTS, values)}

        with timed(self._metrics, "may_post"):
            ours = in_transaction(self._engine, work)
        crash_point(CrashPoint.POST_ALLOWED)
        return [(task.id, task.version) in ours for task, _ in posts]

    def sent(self, task: Task) -> Sent:
        """What is known of the POSTs of the row's attempt."""
        values = {"id": task.id, "attempt": task.attempt}
        return in_transaction(self._engine, lambda c: Sent(**c.execute(_SENT, values).one()._mapping))

    def own_for(self, task: Task, seconds: float, *, looked: bool = False) -> bool:
        """A submitting row of ours is ours for so long from now, and then anybody's. False: it is not ours any more.

        looked -- the provider was asked in vain what became of the POST
        """
        values = {"id": task.id, "version": task.version, "seconds": seconds, "looks": int(looked)}
        return in_transaction(self._engine, lambda c: c.execute(_OWN, values).rowcount == 1)

    def seen_running(self, ids: Iterable[uuid.UUID]) -> None:
        """These jobs run, so what they will have made is kept for its whole time from now on."""
        wanted = [str(id_) for id_ in sorted(ids)]

        def work(c: sa.Connection) -> None:
            c.execute(LOCK_IN_ORDER, {"ids": wanted})
            c.execute(_SEEN_RUNNING, {"ids": wanted})

        in_transaction(self._engine, work)

    def record(self, accepted: Sequence[tuple[Task, Accepted]], due_in: float) -> list[Task | None]:
        """submitting -> processing for each row and its provider job. One answer each, None: the row has moved on.

        The job's id goes to `attempts` in any case.
        """
        changes = [
            Change(
                task=t, to=Status.PROCESSING, provider_job_id=job.provider_job_id, job_handle=job.handle, due_in=due_in
            )
            for t, job in accepted
        ]
        values = {
            "ids": [str(task.id) for task, _ in accepted],
            "attempts": [task.attempt for task, _ in accepted],
            "jobs": [job.provider_job_id for _, job in accepted],
            "costs": [job.cost and job.cost.amount for _, job in accepted],
            "units": [job.cost and job.cost.unit for _, job in accepted],
        }
        # First tasks, then attempts, as every move does: the other way round two of them could deadlock.
        return self._move_each(changes, lambda connection, _: connection.execute(_ACCEPTED, values))

    def take_due(self, limit: int, next_look: float, skip_pools: Sequence[str] = ()) -> list[Task]:
        """Rows whose moment has come; each comes due again unless it moves.

        Those whose result vanishes first come first, then the oldest.

        next_look  -- seconds until a running job is looked at again
        skip_pools -- pools whose check queue is not draining; their pending rows are taken all the same
        """
        values = {"limit": limit, "next_look": next_look, "skip_pools": list(skip_pools)}
        with timed(self._metrics, "due"):
            due = in_transaction(self._engine, lambda c: list(c.execute(_TAKE_DUE, values)))
        if due:
            crash_point(CrashPoint.DUE_TAKEN)
        for row in due:
            self._metrics.observe("poll_lag_seconds", row.late_by, pool=row.pool)
        return [task_of(row) for row in due]

    def at_work(self, backend: str, job_ids: Sequence[str]) -> list[Task]:
        """The rows of this backend that wait for one of these provider jobs.

        A submitting one is about to: its job ended before its owner could record it. Only where a job's id is its key.
        """
        values = {"backend": backend, "job_ids": list(job_ids)}
        return in_transaction(self._engine, lambda c: [task_of(row) for row in c.execute(_AT_WORK, values)])

    def cancel(self, task_id: uuid.UUID, reason: str | None = None, by_whom: str | None = None) -> Task | None:
        """Cancel an unfinished task: the row as it is afterwards, which a final one may be already; None: no such row.

        The job at the provider is still to be cancelled; the row holds its slot until that is done.
        by_whom -- the person who asked; a cancellation that happens is then noted in operator_actions with it
        """

        def note(connection: sa.Connection, moved: Mapping[uuid.UUID, Task]) -> None:
            if by_whom is not None:
                for id_ in moved:
                    note_action(connection, by_whom, "order cancel", str(id_), {"reason": reason})

        while True:
            task = self.find(task_id)
            if task is None or task.status.is_final:
                return task
            begun = task.status is not Status.PENDING
            change = Change(
                task=task,
                to=Status.CANCELLED,
                reason=reason or "on request",
                due_in=0.0,
                cancel_owed=begun,
                attempt_outcome="cancelled" if begun else None,
            )
            if moved := self._move([change], note):
                return moved[task.id]

    def begin_alone(self, task: Task) -> int:
        """How many workers died in a row over this attempt; until `survived`, the caller counts as one more of them.

        For a row some worker may have died of, and with no other such row in hand: whose fault a death is must be
        plain. 0 for a row that has moved on.
        """
        values = {"id": task.id, "version": task.version}
        return in_transaction(self._engine, lambda c: c.execute(_BEGIN_ALONE, values).scalar_one_or_none() or 0)

    def survived(self, task: Task) -> None:
        """Nobody dies of this attempt."""
        values = {"id": task.id, "attempt": task.attempt}
        in_transaction(self._engine, lambda c: c.execute(_SURVIVED, values))

    def attempts_ended(self, task: Task, outcome: Reason) -> int:
        """Attempts since the last replay that ended this way."""
        values = {"id": task.id, "outcome": outcome}
        return in_transaction(self._engine, lambda c: int(c.execute(_ENDED_WITH, values).scalar_one()))

    def accepted_as(self, task: Task) -> str | None:
        """The provider's id of the job of this attempt, which it may have given after the row had moved on."""
        values = {"id": task.id, "attempt": task.attempt}
        return in_transaction(self._engine, lambda c: c.execute(_ACCEPTED_AS, values).scalar_one_or_none())

    def clear_due(self, paid: Sequence[FollowUp]) -> None:
        """The follow-ups of these final rows are confirmed: nothing is owed any more, or only a cancel."""
        ordered = sorted(paid, key=lambda follow_up: follow_up.task_id)
        values = {
            "ids": [str(f.task_id) for f in ordered],
            "versions": [f.version for f in ordered],
            "owed": [f.still_owed for f in ordered],
        }

        def work(connection: sa.Connection) -> list[Any]:
            connection.execute(LOCK_IN_ORDER, {"ids": values["ids"]})
            return list(connection.execute(_CLEAR_DUE, values))

        crash_point(CrashPoint.FOLLOW_UP_CLEARING)
        with timed(self._metrics, "follow_up"):
            cleared = in_transaction(self._engine, work)
        crash_point(CrashPoint.FOLLOW_UP_CLEARED)
        for row in cleared:
            if row.told_after is not None:
                self._metrics.observe("order_stage_seconds", row.told_after, pool=row.pool, stage="deliver")

    def free_rows(self, most: Mapping[str, int]) -> Mapping[str, int]:
        """Rows free to take now, by pool, counted up to the number that is given for it. Those that wait for one
        backend alone count while it takes work.
        """
        values = {"pools": list(most), "most": list(most.values())}
        return in_transaction(self._engine, lambda c: {row.pool: row.rows for row in c.execute(_FREE, values)})

    def artifacts(self, ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, list[Artifact]]:
        """The pictures of completed tasks, by task, in order."""
        wanted = {"ids": [str(id_) for id_ in ids]}
        found: dict[uuid.UUID, list[Artifact]] = {}
        for row in in_transaction(self._engine, lambda connection: connection.execute(_ARTIFACTS, wanted).all()):
            values: dict[str, Any] = dict(row._mapping)
            found.setdefault(values.pop("task_id"), []).append(Artifact(**values))
        return found

    def refresh(self, task: Task) -> Task:
        """The same row as it is now."""
        return self.get([task.id])[task.id]
