"""What people did: by whom, what, to what, when, and in what words."""

import re
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Request, Response

from services.ops.console.forms import moment_of
from services.ops.console.parts import Parts
from services.ops.console.problem import Refused
from services.ops.console.rendering import Pages, link
from shared.database.action_log import Action, ActionFilter, Actions

_PAGE: Final = 100
_NUMBER: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_TASK: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


def routes(pages: Pages, parts: Parts) -> APIRouter:
    """The page at /audit."""
    router = APIRouter()
    actions = Actions(parts.engine)

    @router.get("/audit")
    def audit(request: Request) -> Response:
        asked = request.query_params
        query = {name: asked.get(name, "") for name in ("by", "action", "subject", "since", "until")}
        before = asked.get("before", "")
        if before and not _NUMBER.fullmatch(before):
            raise Refused(422, "No such page", "Begin at the newest again.")
        wanted = ActionFilter(
            by_whom=query["by"] or None,
            action=query["action"] or None,
            subject=query["subject"] or None,
            since=_moment(query["since"]),
            until=_moment(query["until"]),
        )
        found = actions.page(wanted, behind=int(before) if before else None, limit=_PAGE + 1)
        rows = found[:_PAGE]
        values: dict[str, Any] = {
            "rows": [(row, place_of(row)) for row in rows],
            "query": query,
            "people": actions.people(),
            "actions": actions.actions(),
            "older": link("/audit", **query, before=rows[-1].id) if len(found) > len(rows) else "",
            "newest": link("/audit", **query) if before else "",
        }
        return pages.page(request, "audit.html", **values)

    return router


def place_of(action: Action) -> str:
    """The page of what it was done to, or "". Pure."""
    kind = action.action.partition(" ")[0]
    if kind == "backend":
        return "/backends"
    if action.action.startswith("dead letter group "):
        return f"/letters/groups/{quote(action.subject, safe='')}"
    if kind == "dead" and _NUMBER.fullmatch(action.subject):
        return f"/letters/{action.subject}"
    if kind == "plan" and _NUMBER.fullmatch(number := action.subject.removeprefix("plan ")):
        return f"/plans/{number}"
    return f"/orders/{action.subject}" if _TASK.fullmatch(action.subject) else ""


def _moment(text: str) -> datetime | None:
    """What a browser's field for a moment says, in UTC."""
    if not text:
        return None
    try:
        return moment_of(text)
    except ValueError:
        raise Refused(422, "This is no moment", "Write it as 2026-01-31T08:30, in UTC.") from None
