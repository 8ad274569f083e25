"""What became of orders: one, a list of them, and the end of one on request."""

import base64
import logging
import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated, Final, Protocol

from fastapi import Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.producer.answers import Cancellation, OrderPage, OrderStatus
from services.producer.bodies import body_of, refusal
from services.producer.database_calls import DatabaseCalls
from services.producer.orders import BadOrder, bad_order
from services.producer.problem import Refused
from shared.database.listing import Filter, Place
from shared.domain.messages import Artifact, Key
from shared.domain.mistakes import Mistake
from shared.domain.task import Status, Task, task_id_for
from shared.observe.logs import bound

log = logging.getLogger(__name__)

_NO_STORE: Final = {"Cache-Control": "no-store"}


TaskId = Annotated[uuid.UUID, Path(description="the task of the order, as placing it answered")]


class Tasks(Protocol):
    """The rows. Every method raises DatabaseAway."""

    def find(self, task_id: uuid.UUID) -> Task | None: ...

    def purged(self, task_id: uuid.UUID) -> Status | None: ...

    def artifacts(self, ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, list[Artifact]]: ...

    def cancel(self, task_id: uuid.UUID, reason: str | None = None, by_whom: str | None = None) -> Task | None: ...


class Listing(Protocol):
    """Rows in the order of a list. Every method raises DatabaseAway."""

    def page(self, wanted: Filter, *, behind: Place | None, limit: int) -> list[Task]: ...

    def ahead_of(self, task: Task) -> int | None: ...


class ListQuery(BaseModel):
    """Which orders, and which page of them. A misspelt name is refused: it would list everything."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    order_id: Key | None = Field(None, description="orders with this order_id")
    idempotency_key: Key | None = Field(
        None, description="the order with this key, or the one the key was kept with because of its order_id"
    )
    status: list[Status] = Field(default_factory=list, description="orders that stand there; may be repeated")
    limit: int = Field(50, ge=1, le=100, description="orders on one page")
    cursor: str | None = Field(None, max_length=200, description="`next_cursor` of the page before")


class Reading:
    """GET /v1/orders, GET /v1/orders/{task_id} and POST /v1/orders/{task_id}/cancel."""

    def __init__(self, tasks: Tasks, listing: Listing, calls: DatabaseCalls) -> None:
        self._tasks = tasks
        self._listing = listing
        self._calls = calls

    async def status(self, task_id: TaskId) -> Response:
        """The row that answers for this id, with its pictures when it is completed."""

        def look() -> OrderStatus:
            task = self._tasks.find(task_id)
            if task is None:
                raise missing(self._tasks, task_id)
            return self._in_full(task)

        return _answer(await self._calls.run(look))

    async def page(self, query: Annotated[ListQuery, Query()]) -> Response:
        """Orders, the newest first. No order comes twice, whatever arrives or changes between two pages.

        Without any filter: all orders. `queue_position` is null in a list. `410` for the key of a purged order.
        """
        wanted = Filter(idempotency_key=query.idempotency_key, order_id=query.order_id, statuses=query.status)
        behind = None if query.cursor is None else _place_of(query.cursor)

        def look() -> OrderPage:
            found = self._listing.page(wanted, behind=behind, limit=query.limit + 1)
            if not found and query.idempotency_key is not None:
                task_id = task_id_for(query.idempotency_key)
                if self._tasks.purged(task_id) is not None:
                    raise missing(self._tasks, task_id)
            shown = found[: query.limit]
            pictures = self._tasks.artifacts([task.id for task in shown])
            return OrderPage(
                orders=[OrderStatus.of(task, pictures.get(task.id, [])) for task in shown],
                next_cursor=_cursor_behind(shown) if len(found) > len(shown) else None,
            )

        return _answer(await self._calls.run(look))

    async def cancel(self, task_id: TaskId, request: Request) -> Response:
        """End an unfinished order. It is cancelled when this answers; its job at the provider is cancelled soon after.

        The body may be left out. Cancelling again changes nothing and answers alike; an order that has completed or
        failed stays as it is.
        """
        reason = await _reason_in(request)

        def end() -> OrderStatus:
            task = self._tasks.cancel(task_id, reason, request.state.caller)
            if task is None:
                raise missing(self._tasks, task_id)
            with bound(trace_id=task.trace_id, task_id=task.id):
                log.info("cancel asked for", extra={"status": task.status, "attempt": task.attempt})
            return self._in_full(task)

        order = await self._calls.run(end)
        if order.status is not Status.CANCELLED:
            raise Refused("already_final", f"the order is {order.status} already", task_id=order.task_id)
        return _answer(order)

    def _in_full(self, task: Task) -> OrderStatus:
        ahead = self._listing.ahead_of(task)
        pictures = self._tasks.artifacts([task.id]).get(task.id, [])
        return OrderStatus.of(task, pictures, None if ahead is None else ahead + 1)


class Tombstones(Protocol):
    """What is left of purged orders. Raises DatabaseAway."""

    def purged(self, task_id: uuid.UUID) -> Status | None: ...


def missing(tombstones: Tombstones, task_id: uuid.UUID) -> Refused:
    """Why no row has this id: it is purged, or it is not there yet. Raises DatabaseAway."""
    status = tombstones.purged(task_id)
    if status is not None:
        return Refused("purged", f"the order is {status}; its row and its pictures are deleted", task_id=task_id)
    detail = "an order just placed has no row until it is claimed; an order never placed has none either"
    return Refused("not_claimed_yet", detail, task_id=task_id)


async def _reason_in(request: Request) -> str | None:
    try:
        raw = await body_of(request)
        return Cancellation.model_validate_json(raw).reason if raw else None
    except ValidationError as error:
        raise refusal(bad_order(error), "invalid_request") from None
    except BadOrder as error:
        raise refusal(error, "invalid_request") from None


def _answer(body: BaseModel) -> Response:
    return Response(body.model_dump_json(), media_type="application/json", headers=_NO_STORE)


def _cursor_behind(shown: Sequence[Task]) -> str:
    last = shown[-1]
    return base64.urlsafe_b64encode(f"{last.created_at.isoformat()} {last.id}".encode()).decode().rstrip("=")


def _place_of(cursor: str) -> Place:
    """Raises Refused."""
    try:
        moment, _, id_ = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode().partition(" ")
        place = Place(datetime.fromisoformat(moment), uuid.UUID(id_))
        if place.created_at.tzinfo is None:
            raise ValueError("a moment without a time zone")
    except ValueError:
        mistake = Mistake("cursor", "is not a cursor that a page gave")
        raise Refused("invalid_request", str(mistake), mistakes=[mistake]) from None
    return place
