"""Backends and their slots: who may start what where. In flight is counted from live rows, never kept in a counter."""

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final, Literal

import sqlalchemy as sa

from shared.database.actions import note_action
from shared.database.candidates import CANDIDATE, CANDIDATE_COLUMNS, Candidate, candidate_of
from shared.database.doubts import note_doubt
from shared.database.engine import in_transaction
from shared.database.limits import halve
from shared.database.measured import Counter, count_taken, timed
from shared.database.prepared import prepared
from shared.database.rooms import Room, held_by, place_for, rooms_of, shunned_of
from shared.database.rows import PRIORITIES, TASK, TASK_COLUMNS, task_of
from shared.domain.rate import Rate
from shared.domain.task import Status, Task, job_key_for, seed_for
from shared.observe.crash import CrashPoint, crash_point

#: Every fifth pick goes by age alone, so a stream of high orders cannot starve a normal one.
PICK_BY_AGE_EVERY: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One row of `backends`. limit -- jobs it may have now: its capacity, or less since it said that we are too fast"""

    name: str
    pool: str
    adapter: str
    url: str
    capacity: int
    limit: int
    max_run_seconds: float
    enabled: bool
    health: str
    health_detail: str | None
    is_paused: bool
    pause_reason: str | None
    in_flight: int
    leases_over: int
    health_changed_at: datetime
    paused_until: datetime | None  # None: not paused, or until somebody resumes it
    is_probe_due: bool = False

    @property
    def takes_work(self) -> bool:
        return self.enabled and (self.health == "up" or self.is_probe_due) and not self.is_paused

    @property
    def state(self) -> Literal["working", "paused", "away"]:
        """Whether it takes work, and whose business it is when it does not; a removed one is paused for good."""
        if self.takes_work:
            return "working"
        return "away" if self.enabled and self.health in ("down", "frozen", "silent") else "paused"

    @property
    def wants_permits(self) -> bool:
        """It takes work, or can at least be asked about rows that nobody owns any more."""
        return self.takes_work or (self.health != "down" and self.leases_over > 0)


@dataclass(frozen=True, slots=True)
class Taken:
    """Rows that are ours for one lease.

    none_left -- slots are free and no row of the pool is free to take, so further permits are for nothing
    """

    tasks: Sequence[Task]
    none_left: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Took:
    """What one transaction took: rows as they were and as they are; held_by -- why not more, one of catalog.WAITS"""

    pairs: Sequence[tuple[Candidate, Task]] = ()
    picked: int = 0
    none_left: bool = False
    held_by: str = "permit"


#: A backend that is refused or silent is tried with one order, at first after so long, then twice as long each time.
FIRST_PROBE_SECONDS: Final = 60.0
LONGEST_PROBE_SECONDS: Final = 900.0

#: Also where no work may be started (paused, frozen, gone from the file): the server can be asked all the same.
_LEASE_OVER: Final = prepared(
    f"""
select {CANDIDATE} from tasks t join backends b on b.name = t.backend
where t.pool = :pool and t.status = 'submitting' and t.free_at <= now() and t.deadline_at > now()
    and b.health <> 'down' and (cast(:known as text[]) is null or b.name = any(:known))
order by t.free_at limit :limit for update of t skip locked
""",
    *CANDIDATE_COLUMNS,
)

_WAITING: Final = f"""
select {CANDIDATE} from tasks t
where t.pool = :pool and t.status = 'pending' and t.free_at <= now()
    and t.deadline_at > now() and t.id <> all(cast(:skip as uuid[])) and {{which}}
order by t.priority desc, t.created_at limit {{limit}} for update skip locked
"""
#: shunned -- the only backend with a free slot while others are there: rows that avoid it must not stand in the way
_ANYWHERE: Final = (
    "t.pinned_backend is null and (cast(:shunned as text) is null or t.avoid_backend is distinct from :shunned)"
)
#: The oldest of each priority, each along tasks_free, and of those the oldest: no row is read that waits behind them.
_OLDEST: Final = " union all ".join(
    f"select * from ({_WAITING.format(which=f'{_ANYWHERE} and t.priority = {level}', limit=':limit')}) p{level}"
    for level in range(len(PRIORITIES))
)
#: Of the rows that wait for one backend alone as many as it has free slots, so that they take none of the others'.
_PINNED: Final = f"""
select p.* from unnest(cast(:pinned as text[]), cast(:free as int[])) as o(backend, free)
cross join lateral ({_WAITING.format(which="t.pinned_backend = o.backend", limit="o.free")}) p
"""
#: Planned at each call: for a pool of which little waits behind much of others another index is right than for those.
_BY_PRIORITY: Final = sa.text(_WAITING.format(which=_ANYWHERE, limit=":limit"))
_BY_AGE: Final = sa.text(f"select p.* from ({_OLDEST}) p order by p.created_at limit :limit")
#: The same where rows wait for one of the free backends alone.
_BY_PRIORITY_WITH_PINS: Final = sa.text(
    f"select p.* from (select * from ({_WAITING.format(which=_ANYWHERE, limit=':limit')}) a union all {_PINNED}) p"
    " order by p.priority desc, p.created_at limit :limit"
)
_BY_AGE_WITH_PINS: Final = sa.text(
    f"select p.* from ({_OLDEST} union all {_PINNED}) p order by p.created_at limit :limit"
)

_TAKE: Final = prepared(
    f"""
update tasks t set status = 'submitting', version = t.version + 1, changed_at = now(), actor = :actor,
    attempt = v.attempt, job_key = v.job_key, backend = v.backend, reason = null, detail = null, stage = null,
    free_at = now() + :lease * interval '1 second', due_at = now() + :lease * interval '1 second'
from unnest(cast(:ids as uuid[]), cast(:versions as int[]), cast(:attempts as int[]), cast(:job_keys as uuid[]),
            cast(:backends as text[])) as v(id, version, attempt, job_key, backend)
where t.id = v.id and t.version = v.version
returning {TASK}
""",
    *TASK_COLUMNS,
)

_BEGIN_ATTEMPTS: Final = prepared("""
insert into attempts (task_id, attempt, backend, job_key, seed, started_at)
select v.*, statement_timestamp() from unnest(cast(:ids as uuid[]), cast(:attempts as int[]), cast(:backends as text[]),
                     cast(:job_keys as uuid[]), cast(:seeds as bigint[])) v
""")

_PROBED: Final = sa.text("""
update backends set probe_at = now() + probe_seconds * interval '1 second',
    probe_seconds = least(2 * probe_seconds, :longest) where name = any(:names)
""")

_SYNC: Final = sa.text("""
insert into backends (name, pool, adapter, url, capacity, max_run_seconds, rate_starts, rate_seconds,
                      result_ttl_seconds)
select * from unnest(cast(:names as text[]), cast(:pools as text[]), cast(:adapters as text[]), cast(:urls as text[]),
                     cast(:capacities as int[]), cast(:max_runs as float8[]),
                     cast(:starts as int[]), cast(:seconds as float8[]), cast(:ttls as float8[]))
on conflict (name) do update set pool = excluded.pool, adapter = excluded.adapter, url = excluded.url,
    capacity = excluded.capacity, max_run_seconds = excluded.max_run_seconds, enabled = true, gone_at = null,
    rate_starts = excluded.rate_starts, rate_seconds = excluded.rate_seconds,
    result_ttl_seconds = excluded.result_ttl_seconds
where (backends.pool, backends.adapter, backends.url, backends.capacity, backends.max_run_seconds, backends.enabled,
        backends.rate_starts, backends.rate_seconds, backends.result_ttl_seconds)
    is distinct from (excluded.pool, excluded.adapter, excluded.url, excluded.capacity, excluded.max_run_seconds, true,
        excluded.rate_starts, excluded.rate_seconds, excluded.result_ttl_seconds)
    or backends.gone_at is not null
""")

#: An older release may have switched it off and not said when.
_GONE: Final = sa.text("""
update backends set enabled = false, gone_at = now()
where (enabled or gone_at is null) and name <> all(cast(:names as text[]))
""")

_ALL: Final = sa.text("""
select b.name, b.pool, b.adapter, b.url, b.capacity, least(b.capacity, b.limit_now) as limit, b.max_run_seconds,
    b.enabled, b.health, b.health_detail,
    coalesce(b.paused_until > now(), false) as is_paused, b.pause_reason, b.health_changed_at,
    nullif(b.paused_until, 'infinity') as paused_until,
    coalesce(b.health in ('refused', 'silent') and b.probe_at <= now(), false) as is_probe_due,
    (select count(*) from tasks t where t.backend = b.name
        and (t.status in ('submitting', 'processing') or t.cancel_owed)) as in_flight,
    (select count(*) from tasks t where t.backend = b.name
        and t.status = 'submitting' and t.free_at <= now() and t.deadline_at > now()) as leases_over
from backends b order by b.pool, b.name
""")


def read_backends(c: sa.Connection) -> list[Backend]:
    """All backends, those no longer in the file included, with what is in flight on each, in the caller's snapshot."""
    return [Backend(**row._mapping) for row in c.execute(_ALL)]


class Slots:
    """The table `backends` and the taking of rows for them."""

    def __init__(self, engine: sa.Engine, actor: str, metrics: Counter) -> None:
        self._engine = engine
        self._actor = actor
        self._metrics = metrics
        self._held: dict[str, str] = {}  # pool -> why its last taking ended before all permits had a row
        self._picks = 0  # only its remainder matters, so a lost update between threads does no harm

    def take(self, pool: str, *, at_most: int, lease_seconds: float, known: Collection[str] | None = None) -> Taken:
        """Own up to `at_most` rows of the pool for one lease: takeovers first, then what free slots allow.

        Pending rows get attempt + 1, a job key and the least loaded backend; a row whose lease ran out keeps all
        three and comes back with taken_over set, from a backend that takes no work without may_send. Raises
        DatabaseAway: rows taken by a commit whose answer was lost are taken over when their lease is over.

        known -- backends the caller has a provider for, since during a deploy the table may name newer ones; None: all
        """
        names = None if known is None else list(known)
        work = partial(self._take, pool=pool, at_most=at_most, lease=lease_seconds, known=names)
        with timed(self._metrics, "take"):
            took = in_transaction(self._engine, work)
        if took.pairs:
            crash_point(CrashPoint.ROW_TAKEN)
        self._picks += took.picked
        why_late = self._held.get(pool, "permit")
        for before, after in took.pairs:
            count_taken(self._metrics, before, after, why_late)
        if at_most >= 1:
            self._held[pool] = took.held_by
        return Taken([after for _, after in took.pairs], took.none_left)

    def _take(self, c: sa.Connection, *, pool: str, at_most: int, lease: float, known: list[str] | None) -> "_Took":
        if at_most < 1:
            return _Took()
        rooms = rooms_of(c, pool, known)
        over = c.execute(_LEASE_OVER, {"pool": pool, "known": known, "limit": at_most})
        placed = [(row, row.backend or "") for row in map(candidate_of, over)]
        # No more than can be placed: of rows that are picked and then left, the order of picking would mean nothing.
        wanted = min(at_most - len(placed), sum(room.free for room in rooms.values()))
        shunned = shunned_of(rooms)
        pending = self._pending(c, pool, wanted, shunned, rooms) if wanted else []
        picked = 0
        for row in sorted(pending, key=lambda row: row.pinned_backend is None):  # the others have a choice
            if place := place_for(row, rooms):
                rooms[place].fill()
                picked += 1
                placed.append((row, place))
        may_be_left = shunned is not None or any(room.has_pins for room in rooms.values())
        none_left = wanted > 0 and len(pending) < wanted and picked == len(pending) and not may_be_left
        owned = {task.id: task for task in self._own(c, placed, lease, rooms)}
        return _Took(
            pairs=[(before, owned[before.id]) for before, _ in placed if before.id in owned],
            picked=picked,
            none_left=none_left,
            held_by="permit" if none_left or len(placed) == at_most else held_by(rooms),
        )

    def _pending(
        self, c: sa.Connection, pool: str, wanted: int, shunned: str | None, rooms: Mapping[str, Room]
    ) -> list[Candidate]:
        """Up to `wanted` rows in the order they are picked: high priority first, every fifth one by age alone."""
        turns = [(self._picks + i) % PICK_BY_AGE_EVERY == PICK_BY_AGE_EVERY - 1 for i in range(wanted)]
        values: dict[str, Any] = {"pool": pool, "shunned": shunned, "skip": []}
        free = {name: room.free for name, room in rooms.items() if room.has_pins and room.free}
        values |= {"pinned": list(free), "free": list(free.values())} if free else {}

        def rows(statement: sa.Executable, limit: int) -> list[Candidate]:
            return [candidate_of(row) for row in c.execute(statement, values | {"limit": limit})] if limit else []

        oldest = rows(_BY_AGE_WITH_PINS if free else _BY_AGE, sum(turns))
        values["skip"] = [str(row.id) for row in oldest]
        values["free"] = [n - sum(row.pinned_backend == name for row in oldest) for name, n in free.items()]
        first = rows(_BY_PRIORITY_WITH_PINS if free else _BY_PRIORITY, wanted - sum(turns))
        queues = {True: iter(oldest), False: iter(first)}
        return [row for turn in turns if (row := next(queues[turn], None))]

    def _own(
        self, c: sa.Connection, placed: Sequence[tuple[Candidate, str]], lease: float, rooms: Mapping[str, Room]
    ) -> list[Task]:
        if not placed:
            return []
        ordered = sorted(placed, key=lambda pair: pair[0].id)
        attempts = [t.attempt + (t.status is Status.PENDING) for t, _ in ordered]
        keys = [job_key_for(t.id, attempt) for (t, _), attempt in zip(ordered, attempts, strict=True)]
        columns: dict[str, list[Any]] = {
            "ids": [str(t.id) for t, _ in ordered],
            "versions": [t.version for t, _ in ordered],
            "attempts": attempts,
            "job_keys": [str(key) for key in keys],
            "backends": [backend for _, backend in ordered],
        }
        over = {t.id for t, _ in ordered if t.status is Status.SUBMITTING}
        rows = c.execute(_TAKE, columns | {"actor": self._actor, "lease": lease}).all()
        new = [i for i, (t, _) in enumerate(ordered) if t.id not in over]
        if new:
            begun: dict[str, Any] = {name: [column[i] for i in new] for name, column in columns.items()}
            del begun["versions"]
            c.execute(_BEGIN_ATTEMPTS, begun | {"seeds": [seed_for(keys[i]) for i in new]})
        closed = {name for name, room in rooms.items() if room.is_closed}
        if probed := closed & {row.backend for row in rows}:
            c.execute(_PROBED, {"names": sorted(probed), "longest": LONGEST_PROBE_SECONDS})
        return [
            task_of(row, taken_over=row.id in over, may_send=row.backend in rooms, is_probe=row.backend in closed)
            for row in rows
        ]

    def sync(
        self,
        wanted: Sequence[tuple[str, str, str, str, int, float]],
        *,
        rates: Mapping[str, Rate] | None = None,
        result_ttls: Mapping[str, float] | None = None,
    ) -> None:
        """Make `backends` say what the backends file says: (name, pool, adapter, url, capacity, max_run_seconds).

        rates       -- by backend; one that is not named starts as much as there is room for
        result_ttls -- by backend, seconds for which it keeps what a job made; one that is not named keeps it for ever
        """
        columns = list(zip(*sorted(wanted), strict=True)) or [()] * 6
        keys = ("names", "pools", "adapters", "urls", "capacities", "max_runs")
        values: dict[str, list[Any]] = {key: list(column) for key, column in zip(keys, columns, strict=True)}
        limits = [(rates or {}).get(name) for name in values["names"]]
        values["starts"] = [limit and limit.starts for limit in limits]
        values["seconds"] = [limit and limit.seconds for limit in limits]
        values["ttls"] = [(result_ttls or {}).get(name) for name in values["names"]]

        def work(connection: sa.Connection) -> None:
            connection.execute(_SYNC, values)
            connection.execute(_GONE, {"names": values["names"]})

        in_transaction(self._engine, work)

    def backends(self) -> list[Backend]:
        """All backends, those no longer in the file included, with what is in flight on each."""
        return in_transaction(self._engine, read_backends)

    def pools(self) -> frozenset[str]:
        """The pools with a backend in somebody's backends file; a newer process may have brought one."""
        statement = sa.text("select distinct pool from backends where enabled")
        return in_transaction(self._engine, lambda c: frozenset(c.execute(statement).scalars()))

    def set_health(self, name: str, health: str, detail: str | None = None, *, only_from: str | None = None) -> bool:
        """up, down or frozen; True when that changed it. only_from -- leave it alone unless it is this."""
        statement = sa.text("""
            update backends set health = :health, health_detail = :detail, health_changed_at = now()
            where name = :name and health <> :health and (cast(:only_from as text) is null or health = :only_from)
        """)
        values = {"name": name, "health": health, "detail": detail, "only_from": only_from}
        return in_transaction(self._engine, lambda c: c.execute(statement, values).rowcount == 1)

    def refuse(self, name: str, detail: str) -> bool:
        """Its account has no money or no valid key: no order but a probe goes there. True when that is news."""
        statement = sa.text("""
            update backends set health = 'refused', health_detail = :detail, health_changed_at = now(),
                probe_seconds = :first, probe_at = now() + cast(:first as float8) * interval '1 second'
            where name = :name and health in ('up', 'silent')
        """)
        values = {"name": name, "detail": detail[:1000], "first": FIRST_PROBE_SECONDS}
        return in_transaction(self._engine, lambda c: c.execute(statement, values).rowcount == 1)

    def doubt(self, name: str, why: str) -> bool:
        """The answer to a POST was lost. True when it was one too many in a row: no order but a probe goes there."""
        work = partial(note_doubt, name=name, why=why, first_probe_seconds=FIRST_PROBE_SECONDS)
        return in_transaction(self._engine, work)

    def reopen(self, name: str) -> bool:
        """A probe was answered: it is `up` again. True when that changed it."""
        statement = sa.text("""
            update backends set health = 'up', health_detail = null, health_changed_at = now(), doubts = 0
            where name = :name and health in ('refused', 'silent')
        """)
        return in_transaction(self._engine, lambda c: c.execute(statement, {"name": name}).rowcount == 1)

    def freeze(self, name: str, job_key: uuid.UUID | None) -> bool:
        """Its worker is dead: this job cannot be cancelled. True when that is news."""
        return self.set_health(name, "frozen", _frozen_by(job_key))

    def thaw(self, name: str, job_key: uuid.UUID | None) -> bool:
        """`up` again, when it was this job that froze it."""
        statement = sa.text("""
            update backends set health = 'up', health_detail = null, health_changed_at = now()
            where name = :name and health = 'frozen' and health_detail = :detail
        """)
        values = {"name": name, "detail": _frozen_by(job_key)}
        return in_transaction(self._engine, lambda c: c.execute(statement, values).rowcount == 1)

    def pause(self, name: str, by_whom: str | None, reason: str, seconds: float | None) -> bool:
        """No new work for `seconds`, or until resumed (None).

        by_whom -- None: a provider asked for it, and a longer pause that stands already keeps its end and its reason

        False: no such backend, or a longer pause stands.
        """
        statement = sa.text("""
            update backends b set pause_reason = :reason, paused_until = wanted.until
            from (select coalesce(now() + cast(:seconds as float8) * interval '1 second', 'infinity') as until) wanted
            where b.name = :name and (:by_person or coalesce(b.paused_until < wanted.until, true))
        """)
        values = {"name": name, "reason": reason, "seconds": seconds, "by_person": by_whom is not None}
        return self._by_hand(statement, values, by_whom, "backend pause", {"reason": reason, "seconds": seconds})

    def too_fast(self, task: Task) -> int | None:
        """Half as many jobs at once, since this attempt was refused for want of room; None: that is known already."""
        work = partial(halve, backend=task.backend or "", task_id=task.id, attempt=task.attempt)
        return in_transaction(self._engine, work)

    def resume(self, name: str, by_whom: str) -> bool:
        """Give it work again, also when it was frozen, refused or silent; False when no such backend."""
        statement = sa.text("""
            update backends set paused_until = null, pause_reason = null, doubts = 0,
                health = case when health = 'down' then health else 'up' end,
                health_detail = case when health = 'down' then health_detail end,
                health_changed_at = case when health in ('up', 'down') then health_changed_at else now() end
            where name = :name
        """)
        return self._by_hand(statement, {"name": name}, by_whom, "backend resume", {})

    def _by_hand(
        self, statement: sa.TextClause, values: dict[str, Any], by_whom: str | None, action: str, detail: dict[str, Any]
    ) -> bool:
        def work(connection: sa.Connection) -> bool:
            changed = connection.execute(statement, values).rowcount == 1
            if changed and by_whom is not None:
                note_action(connection, by_whom, action, values["name"], detail)
            return changed

        return in_transaction(self._engine, work)


def _frozen_by(job_key: uuid.UUID | None) -> str:
    return f"job {job_key} cannot be cancelled"
