"""What room the backends of a pool have for further jobs, and which of them a row is given."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from shared.database.candidates import Candidate
from shared.database.limits import STARTED, widened
from shared.database.prepared import prepared

#: About a row `b` of backends.
TAKES_WORK: Final = """(b.enabled and coalesce(b.paused_until <= now(), true)
    and (b.health = 'up' or b.health in ('refused', 'silent') and b.probe_at <= now()))"""

#: Not FOR UPDATE: rows and plans that refer to a backend may be written meanwhile, and take their time to commit.
_LOCK: Final = prepared(f"""
select b.name, b.capacity, b.limit_now, b.rate_starts, b.health <> 'up' as is_closed from backends b
where b.pool = :pool and {TAKES_WORK} and (cast(:known as text[]) is null or b.name = any(:known))
order by b.name for no key update
""")

#: A statement of its own, after the lock: one statement for both would count with a snapshot older than the lock.
#: No further than anybody wants to know, which has it read along tasks_live and not through a bitmap: such a scan marks
#: the entries of rows that went on, and the next one does not read them again (0.7 ms, and then 0.02, at 10,000).
#: Whether rows wait for it alone is asked in the same way: EXISTS would be answered from a hash of all those that do.
_IN_FLIGHT: Final = prepared("""
select b.name as backend, (
    select count(*) from (
        select 1 from tasks t where t.backend = b.name and (t.status in ('submitting', 'processing') or t.cancel_owed)
        limit b.capacity
    ) counted) as live,
    (
    select count(*) from (
        select 1 from tasks p where p.pinned_backend = b.name and p.status = 'pending' and p.free_at <= now()
        order by p.priority desc, p.created_at limit 1
    ) counted) > 0 as pins
from backends b where b.name = any(:backends)
""")


@dataclass(slots=True)
class Room:
    """What one backend that takes work may still be given.

    starts   -- what its rate allows now; one for a probe
    has_pins -- rows wait that no other backend may make
    """

    capacity: int
    load: int
    starts: int
    is_closed: bool = False
    has_pins: bool = False

    @property
    def free(self) -> int:
        return max(0, min(self.capacity - self.load, self.starts))

    def fill(self) -> None:
        self.load += 1
        self.starts -= 1


def rooms_of(c: sa.Connection, pool: str, known: list[str] | None) -> dict[str, Room]:
    """The pool's backends that take work, by name, locked until the transaction ends."""
    backends = c.execute(_LOCK, {"pool": pool, "known": known}).all()
    found = {row.backend: row for row in c.execute(_IN_FLIGHT, {"backends": [b.name for b in backends]})}
    rated = [b.name for b in backends if b.rate_starts is not None]
    started = {row.name: row.starts for row in c.execute(STARTED, {"rated": rated})} if rated else {}
    limits = {b.name: b.limit_now for b in backends if b.limit_now is not None}
    limits |= widened(c, limits)
    return {
        b.name: Room(
            capacity=min(b.capacity, limits.get(b.name, b.capacity)),
            load=found[b.name].live,
            starts=min(
                b.capacity if b.rate_starts is None else b.rate_starts - started[b.name],
                1 if b.is_closed else b.capacity,
            ),
            is_closed=b.is_closed,
            has_pins=found[b.name].pins,
        )
        for b in backends
    }


def shunned_of(rooms: Mapping[str, Room]) -> str | None:
    """The one backend with a free slot, when there are others without: rows that avoid it wait for those."""
    open_ = [name for name, room in rooms.items() if room.free]
    return open_[0] if len(open_) == 1 and len(rooms) > 1 else None


def place_for(row: Candidate, rooms: Mapping[str, Room]) -> str | None:
    """The least loaded backend with a free slot; never the one to avoid while another one is there at all, nor any but
    the one it is pinned to.
    """
    if row.pinned_backend is not None:
        room = rooms.get(row.pinned_backend)
        return row.pinned_backend if room is not None and room.free else None
    others = [name for name in rooms if name != row.avoid_backend] or list(rooms)
    open_ = [name for name in others if rooms[name].free]
    return min(open_, key=lambda n: (rooms[n].load / rooms[n].capacity, rooms[n].load, n), default=None)


def held_by(rooms: Mapping[str, Room]) -> str:
    """Why these can start nothing more now; one of catalog.WAITS."""
    open_ = [room for room in rooms.values() if not room.is_closed]
    if not open_:
        return "closed"
    return "rate" if any(room.load < room.capacity and room.starts <= 0 for room in open_) else "slot"
