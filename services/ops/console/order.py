"""One order: its whole story, its pictures, and what a person may do about it."""

import json
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from services.ops import unknown
from services.ops.console.auth import Posted, SignedIn
from services.ops.console.parts import Parts
from services.ops.console.problem import Refused, not_found
from services.ops.console.rendering import Pages, done
from services.ops.pinned import pin_said
from services.ops.trace import Stay, events_of, stays_of
from shared.database import adopt
from shared.database.history import History
from shared.database.letters import Letters
from shared.database.slots import Slots
from shared.database.tasks import Tasks
from shared.domain.task import Reason, Status, Task
from shared.observe.logs import redacted_body
from shared.terminal import Quiet

T = TypeVar("T")

Number = Annotated[int, Path(ge=0, le=2**31 - 1)]

#: Of a long story: an order may have been given back to wait a thousand times.
_FIRST: Final = 50
_LAST: Final = 150
#: The same of its attempts, and of its dead letters: their rows take longer to show.
_FIRST_TRIES: Final = 10
_LAST_TRIES: Final = 40
_BAR: Final = 1000
_LEAST: Final = 6


def routes(pages: Pages, parts: Parts) -> APIRouter:
    """The pages under /orders/{task_id}."""
    router = APIRouter()
    history = History(parts.engine)
    letters = Letters(parts.engine)
    slots = Slots(parts.engine, "console", Quiet())

    def found(task_id: uuid.UUID, by_whom: str) -> tuple[Tasks, Task]:
        tasks = Tasks(parts.engine, by_whom, Quiet())
        task = tasks.find(task_id)
        if task is None:
            raise _no_order()
        return tasks, task

    @router.get("/orders/{task_id}")
    def order(request: Request, task_id: uuid.UUID) -> Response:
        story = history.story(task_id)
        if story is None:
            raise _no_order()
        task, events, stays = story.task, events_of(story), stays_of(story)
        values: dict[str, Any] = {
            "story": story,
            "task": task,
            "events": _ends(events, _FIRST, _LAST),
            "attempts": _ends(story.attempts, _FIRST_TRIES, _LAST_TRIES),
            "letters": _ends(story.letters, _FIRST_TRIES, _LAST_TRIES),
            "left_out": max(0, len(events) - _FIRST - _LAST),
            "first": _FIRST,
            "bars": _bars(stays[-_LAST:]),
            "totals": _totals(stays),
            "body": json.loads(redacted_body(json.dumps(task.body))) if task.body else None,
            "pin": pin_said(task, slots.backends()) if task.pinned_backend is not None else None,
            "may_cancel": not task.status.is_final,
            "may_adopt": task.status is Status.FAILED and task.attempt > 0,
            "is_in_doubt": task.status is Status.FAILED and task.reason == Reason.OUTCOME_UNKNOWN,
        }
        return pages.page(request, "order.html", **values)

    @router.get("/orders/{task_id}/pictures/{attempt}/{index}")
    async def picture(task_id: uuid.UUID, attempt: Number, index: Number) -> Response:
        return await _picture(history, parts, task_id, attempt, index)

    @router.post("/orders/{task_id}/cancel")
    def cancel(task_id: uuid.UUID, signed: SignedIn, form: Posted) -> Response:
        by_whom = signed.session.user
        tasks, before = found(task_id, by_whom)
        task = tasks.cancel(before.id, form.text("reason") or None, by_whom) or before
        if task.status is not Status.CANCELLED or before.status is Status.CANCELLED:
            return done(signed.token, _page(task), f"It is {task.status} already; nothing was changed.", well=False)
        owed = " Its job at the provider is cancelled next." if task.cancel_owed else ""
        return done(signed.token, _page(task), f"The order is cancelled.{owed}")

    @router.post("/orders/{task_id}/adopt")
    def adopt_job(task_id: uuid.UUID, signed: SignedIn, form: Posted) -> Response:
        job, why = form.text("job", needed="Name the provider's job."), form.text("why", needed="Say how you know.")
        if not adopt.JOB_ID.fullmatch(job):
            raise Refused(
                422, "This is no job id", "It has 1 to 200 letters, digits, dots, dashes, colons and underscores."
            )
        _, task = found(task_id, signed.session.user)
        after = adopt.adopt(
            parts.engine,
            task,
            job,
            signed.session.user,
            why,
            default_deadline=parts.default_deadline_seconds,
            tries=parts.retry.max_charged,
        )
        if isinstance(after, adopt.Refused):
            return done(signed.token, _page(task), f"It cannot adopt a job: {after.why}.", well=False)
        return done(signed.token, _page(task), f"It waits for job {job} on {after.backend}; the poller looks next.")

    @router.post("/orders/{task_id}/submit-again")
    def submit_again(task_id: uuid.UUID, signed: SignedIn, form: Posted) -> Response:
        why = form.text("why", needed="Say how you decided.")
        _, task = found(task_id, signed.session.user)
        answer = unknown.submit_again(letters, parts.replayer, task, signed.session.user, why)
        if isinstance(answer, str):
            return done(signed.token, _page(task), f"Nothing was changed: {answer}.", well=False)
        return done(signed.token, _page(task), "The order is pending again, as a new attempt.")

    @router.post("/orders/{task_id}/give-up")
    def give_up(task_id: uuid.UUID, signed: SignedIn, form: Posted) -> Response:
        why = form.text("why", needed="Say how you decided.")
        _, task = found(task_id, signed.session.user)
        answer = unknown.give_up(letters, task, signed.session.user, why)
        if isinstance(answer, str):
            return done(signed.token, _page(task), f"Nothing was changed: {answer}.", well=False)
        return done(signed.token, _page(task), "The order stays failed, and its dead letter is closed.")

    return router


async def _picture(history: History, parts: Parts, task_id: uuid.UUID, attempt: int, index: int) -> Response:
    """The bytes as they were stored. An Artifact is a PNG or a JPEG and nothing else, checked to its last chunk."""
    artifact = await run_in_threadpool(history.picture, task_id, attempt, index)
    if artifact is None:
        raise not_found("picture", "The order has none of this number.")
    try:
        pieces = await parts.store.stream(artifact.key, artifact.bytes, range(artifact.bytes))
    except FileNotFoundError:
        raise not_found("picture", "Its row says that it was stored, and the store does not have it.") from None
    headers = {
        "Content-Length": str(artifact.bytes),
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cache-Control": "private, max-age=86400, immutable",
    }
    return StreamingResponse(pieces, 200, headers, artifact.media_type)


def _bars(stays: Sequence[Stay]) -> list[dict[str, Any]]:
    """Where each stay begins on a line of 1000, and how long it is; the shortest can still be seen."""
    whole = max((stay.end for stay in stays), default=0.0)
    scale = _BAR / whole if whole else 0.0
    return [
        {
            "status": stay.status,
            "x": min(_BAR - _LEAST, round(stay.begin * scale)),
            "width": max(_LEAST, round((stay.end - stay.begin) * scale)),
        }
        for stay in stays
    ]


def _totals(stays: Sequence[Stay]) -> dict[str, float | None]:
    """Seconds in each status, in the order they were first reached; None for a final one."""
    totals: dict[str, float | None] = {}
    for stay in stays:
        before = totals.get(stay.status) or 0.0
        totals[stay.status] = None if Status(stay.status).is_final else before + stay.end - stay.begin
    return totals


def _ends(rows: Sequence[T], first: int, last: int) -> Sequence[T]:
    """The first and the last of many rows. Pure."""
    return [*rows[:first], *rows[max(first, len(rows) - last) :]]


def _page(task: Task) -> str:
    return f"/orders/{task.id}"


def _no_order() -> Refused:
    return not_found("order", "An order just placed has no row yet; one that was purged has none any more.")
