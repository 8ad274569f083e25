"""Orders: found by whatever name somebody has for one, and listed by status and pool."""

import uuid
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from services.ops.console.forms import moment_of
from services.ops.console.parts import Parts
from services.ops.console.problem import Refused
from services.ops.console.rendering import Pages, link
from shared.database.listing import Filter, Listing, Place
from shared.database.slots import Slots
from shared.domain.task import Status, Task
from shared.terminal import Quiet

_PAGE: Final = 50
#: What a name may lead to at most: an order id may have had many tasks.
_NAMED: Final = 200
_LONGEST: Final = 300


def routes(pages: Pages, parts: Parts) -> APIRouter:
    """The page at /orders."""
    router = APIRouter()
    listing = Listing(parts.engine)
    slots = Slots(parts.engine, "console", Quiet())

    @router.get("/orders")
    def orders(request: Request) -> Response:
        asked = request.query_params
        text = asked.get("q", "").strip()[:_LONGEST]
        pool = asked.get("pool", "")
        statuses = [_status(name) for name in asked.getlist("status") if name]
        behind = _place(asked.get("before", ""))
        if text:
            found = [task for task in listing.named(text, _NAMED) if _is_wanted(task, pool, statuses)]
            if len(found) == 1 and not pool and not statuses:
                return RedirectResponse(f"/orders/{found[0].id}", 303)
        else:
            found = listing.page(Filter(pool=pool or None, statuses=statuses), behind=behind, limit=_PAGE + 1)
        rows = found if text else found[:_PAGE]
        query = {"pool": pool, "status": statuses[0] if len(statuses) == 1 else ""}
        older = link("/orders", **query, before=_named(rows[-1])) if len(rows) < len(found) else ""
        values: dict[str, Any] = {
            "tasks": rows,
            "text": text,
            "pool": pool,
            "wanted": statuses,
            "pools": sorted(slots.pools() | set(parts.pools) | ({pool} if pool else set())),
            "older": older,
            "newest": link("/orders", **query) if behind is not None else "",
        }
        return pages.page(request, "orders.html", **values)

    return router


def _is_wanted(task: Task, pool: str, statuses: list[Status]) -> bool:
    return (not pool or task.pool == pool) and (not statuses or task.status in statuses)


def _status(name: str) -> Status:
    try:
        return Status(name)
    except ValueError:
        raise Refused(422, "No such status", f"An order is one of {', '.join(Status)}.") from None


def _named(task: Task) -> str:
    """The place of a row in a list, as it stands in an address."""
    return f"{task.created_at.isoformat()}~{task.id}"


def _place(text: str) -> Place | None:
    if not text:
        return None
    moment, _, id_ = text.partition("~")
    try:
        return Place(moment_of(moment), uuid.UUID(id_))
    except ValueError:
        raise Refused(422, "No such page", "Begin at the newest again.") from None
