"""The first page: is something wrong, since when, and where to look."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from services.ops.console.auth import SignedIn
from services.ops.console.parts import Parts
from services.ops.console.rendering import Pages, link
from services.ops.exporter import Seen
from shared.database.audit import PROMISES
from shared.database.recent import BARS, Recent, read_recent
from shared.database.slots import Backend
from shared.database.state import Bound
from shared.domain.task import Status

_LATE: Final = {
    Bound.LEASE: "orders past the end of their lease that no submitter took over",
    Bound.POLL: "running orders that no poller looked at when it should have",
    Bound.DEADLINE: "orders past their deadline that nobody has ended",
    Bound.FOLLOW_UP: "ended orders that still owe their event, dead letter or cancel",
}
#: Where such orders are among others; those that owe their follow-up may have ended in any way.
_LISTED: Final = {
    Bound.LEASE: "/orders?status=submitting",
    Bound.POLL: "/orders?status=processing",
    Bound.DEADLINE: "/orders?status=pending",
    Bound.FOLLOW_UP: "/orders?status=failed",
}
_AILING: Final = {
    "down": "does not answer",
    "frozen": "is frozen: a job cannot be cancelled there",
    "refused": "refuses us: no money, or no valid key",
    "silent": "is silent: answers are lost one after another",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """One thing that is wrong. grave -- a promise is broken, or orders stand still"""

    text: str
    to: str = ""
    since: datetime | None = None
    grave: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """One row of the table of pools."""

    name: str
    counts: Counter[Status]
    oldest_pending: datetime | None
    states: Counter[str]


def routes(pages: Pages, parts: Parts) -> APIRouter:
    """The page at /."""
    router = APIRouter()

    @router.get("/")
    def overview(request: Request, signed: SignedIn) -> Response:
        seen, recent, now = parts.seen(), read_recent(parts.engine), signed.session.now
        values: dict[str, Any] = {
            "seen": seen,
            "troubles": list(troubles(seen, recent)),
            "pools": pools_of(seen, now, parts.pools),
            "letters": _by_reason(seen),
            "bars": _bars(recent),
            "recent": recent,
        }
        return pages.page(request, "overview.html", **values)

    return router


def troubles(seen: Seen, recent: Recent) -> Iterator[Trouble]:
    """What a person should look at, the gravest first. Pure."""
    if seen.violations is not None:
        for check, rows in seen.violations.items():
            if rows:
                text = f"A promise is broken {rows} times, and darkroom audit names where: {PROMISES[check]}"
                yield Trouble(text=text, grave=True)
    if seen.state is None:
        return
    for bound, count in seen.state.overdue.items():
        if count:
            yield Trouble(text=f"{count} × {_LATE[bound]}", to=_LISTED[bound], grave=True)
    for backend in seen.state.backends:
        yield from _of_backend(backend)
    for name, count in seen.state.stuck.items():
        noun = "order waits" if count == 1 else "orders wait"
        yield Trouble(text=f"{count} {noun} for {name} alone, which takes no work", to="/orders?status=pending")
    if count := sum(seen.state.dead_letters.values()):
        noun = "dead letter waits" if count == 1 else "dead letters wait"
        yield Trouble(text=f"{count} {noun} for a decision", to="/letters", since=recent.oldest_letter)
    for name, count in seen.state.at_risk.items():
        yield Trouble(text=f"{count} results at {name} may vanish before they are fetched", to="/backends", grave=True)


def _of_backend(backend: Backend) -> Iterator[Trouble]:
    if not backend.enabled:
        return
    if backend.is_paused:
        why = f": {backend.pause_reason}" if backend.pause_reason else ""
        yield Trouble(text=f"{backend.name} is paused{why}", to="/backends")
    elif backend.health != "up":
        yield Trouble(
            text=f"{backend.name} {_AILING[backend.health]}",
            to="/backends",
            since=backend.health_changed_at,
            grave=True,
        )


def pools_of(seen: Seen, now: datetime, configured: Sequence[str]) -> list[Pool]:
    """Every pool that is in use, with what waits there. Pure."""
    if seen.state is None:
        return []
    names = list(
        dict.fromkeys([*configured, *(b.pool for b in seen.state.backends), *(w.pool for w in seen.state.waiting)])
    )
    found = []
    for name in names:
        waiting = [row for row in seen.state.waiting if row.pool == name]
        ages = [row.oldest_seconds for row in waiting if row.status is Status.PENDING]
        age = max(ages, default=None) if ages else None
        found.append(
            Pool(
                name=name,
                counts=Counter({row.status: row.count for row in waiting}),
                oldest_pending=None if age is None else now - timedelta(seconds=age + seen.state_age_seconds),
                states=Counter(backend.state for backend in seen.state.backends if backend.pool == name),
            )
        )
    return found


def _by_reason(seen: Seen) -> list[tuple[str, str, int, str]]:
    """(stage, reason, how many, where they are listed), the most first."""
    if seen.state is None:
        return []
    return [
        (stage, reason, count, link("/letters", stage=stage, reason=reason))
        for (stage, reason), count in sorted(seen.state.dead_letters.items(), key=lambda item: -item[1])
    ]


def _bars(recent: Recent) -> list[dict[str, float]]:
    """Rectangles of the picture of the last hour: x from 0 to 60, heights of a whole of 100."""
    highest = max((bar.completed + bar.failed + bar.cancelled for bar in recent.bars), default=0)
    scale = 100 / highest if highest else 0.0
    return [
        {
            "x": BARS - 1 - bar.ago,
            "completed": round(bar.completed * scale, 2),
            "failed": round((bar.failed + bar.cancelled) * scale, 2),
            "count": bar.completed + bar.failed + bar.cancelled,
        }
        for bar in recent.bars
        if 0 <= bar.ago < BARS
    ]
