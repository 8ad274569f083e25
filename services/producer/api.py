"""HTTP in front of the queue: orders in, status out. It decides what can be decided at once, the rest is the row's."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final, Protocol, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from services.producer.orders import BadOrder, Mistake, Offer, TooLarge, read_order
from services.producer.problem import documented, problem
from services.producer.publish import NotConfirmed, Publisher, publish_one
from shared.domain.errors import BrokerAway, DatabaseAway
from shared.domain.messages import MAX_ORDER_BYTES, Artifact, Order, order_placed
from shared.domain.task import Priority, Status, Task
from shared.observe.logs import ContextPool, bound
from shared.observe.metrics import our_version
from shared.observe.trace import trace_id_from, traceparent_of

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Threads that read the database, and so the connections this service needs.
READERS: Final = 8
#: How long an order waits to be compared with a row of its key. Without an answer it is published all the same.
_COMPARE_SECONDS: Final = 1.0
#: How long a status may take before it counts as away.
_READ_SECONDS: Final = 5.0


class Tasks(Protocol):
    """The rows, as far as this service reads them. Every method raises DatabaseAway."""

    def find(self, task_id: uuid.UUID) -> Task | None: ...

    def kept_fingerprint(self, task_id: uuid.UUID) -> str | None: ...

    def artifacts(self, ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, list[Artifact]]: ...


class Counter(Protocol):
    def count(self, name: str, amount: float = 1, /, **labels: str) -> None: ...


class Accepted(BaseModel):
    """The order is in the broker's hands, or has a row already. Asking again with the same content changes nothing."""

    task_id: uuid.UUID
    idempotency_key: str
    status_url: str


class OrderStatus(BaseModel):
    """The row of one order. `version` rises with every change of status."""

    task_id: uuid.UUID
    status: Status
    version: int
    attempt: int
    pool: str
    workflow: str | None
    priority: Priority
    order_id: str | None
    idempotency_key: str
    reason: str | None
    detail: str | None
    created_at: datetime
    changed_at: datetime
    finished_at: datetime | None
    deadline_at: datetime
    artifacts: list[Artifact]
    metadata: dict[str, Any]


class Orders:
    """What the endpoints do, with everything they need. `readers` bounds the threads that wait for the database."""

    def __init__(
        self,
        *,
        publisher: Publisher,
        tasks: Tasks,
        offer: Offer,
        metrics: Counter,
        confirm_timeout_seconds: float,
        readers: ContextPool,
    ) -> None:
        self._publisher = publisher
        self._tasks = tasks
        self._offer = offer
        self._metrics = metrics
        self._confirm_timeout = confirm_timeout_seconds
        self._readers = readers

    async def place(self, request: Request) -> Response:
        """Accept one order, or say at once why not."""
        try:
            order = read_order(await _body(request))
            if mistakes := self._offer.mistakes(order):
                raise BadOrder(mistakes)
        except BadOrder as error:
            self._count("invalid")
            return _refusal(error)
        trace_id = trace_id_from(request.headers)
        with bound(trace_id=trace_id, task_id=order.task_id):
            return await self._publish(order, trace_id)

    async def _publish(self, order: Order, trace_id: str) -> Response:
        match await self._same_order_is_known(order):
            case False:
                self._count("conflict")
                log.info("idempotency key reused")
                detail = "the first order with this key stays as it is; use a new key for a new order"
                return problem("key_reused", detail, task_id=str(order.task_id))
            case True:
                # The row owns its way from here on, lost permits included; a second message would only be acked.
                self._count("duplicate")
                self._metrics.count("duplicates_suppressed_total", point="publish")
                log.info("order known already")
                return _accepted(order)
            case None:
                pass
        try:
            message = order_placed(order, traceparent=traceparent_of(trace_id))
            await publish_one(self._publisher, message, self._confirm_timeout)
        except BrokerAway as error:
            if isinstance(error, NotConfirmed):
                self._metrics.count("publishes_total", result="timeout")
            log.warning("order not confirmed", extra={"why": str(error)})
            detail = (
                "the broker did not confirm in time; send the same order again, its key keeps it from counting twice"
            )
            return problem("broker_away", detail, retry=True)
        self._count("accepted")
        log.info("order published", extra={"pool": order.pool})
        return _accepted(order)

    async def _same_order_is_known(self, order: Order) -> bool | None:
        """Whether the key's row has this content; None without a row, or when the database is slow or away.

        An early answer and no more: an outage of the database must not stop orders, and the claim compares again.
        """

        def compare() -> bool | None:
            task = self._tasks.find(order.task_id)
            if task is None:
                return None
            if task.id == order.task_id:
                return task.fingerprint == order.fingerprint
            return self._tasks.kept_fingerprint(order.task_id) == order.fingerprint

        try:
            return await self._read(compare, _COMPARE_SECONDS)
        except DatabaseAway as error:
            log.warning("order not compared", extra={"why": str(error)})
            return None

    async def status(self, task_id: uuid.UUID) -> Response:
        """The row that answers for this id, with the pictures when it is completed."""

        def look() -> OrderStatus | None:
            task = self._tasks.find(task_id)
            return None if task is None else _status_of(task, self._tasks.artifacts([task.id]).get(task.id, []))

        try:
            found = await self._read(look, _READ_SECONDS)
        except DatabaseAway as error:
            log.warning("status not read", extra={"why": str(error)})
            return problem("database_away", "ask again; the order goes on meanwhile", retry=True)
        if found is None:
            detail = "an order just placed has no row until it is claimed; an order never placed has none either"
            return problem("not_claimed_yet", detail, task_id=str(task_id))
        return Response(found.model_dump_json(), media_type="application/json", headers={"Cache-Control": "no-store"})

    async def _read(self, question: Callable[[], T], at_most_seconds: float) -> T:
        """Raises DatabaseAway, also when the answer takes too long or all readers wait for theirs."""
        future = self._readers.submit(question)
        try:
            async with asyncio.timeout(at_most_seconds):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            future.cancel()
            raise DatabaseAway(f"no answer within {at_most_seconds:g} s") from None

    def _count(self, result: str) -> None:
        self._metrics.count("orders_received_total", source="http", result=result)


def create_app(
    *,
    publisher: Publisher,
    tasks: Tasks,
    offer: Offer,
    metrics: Counter,
    confirm_timeout_seconds: float = 5.0,
) -> FastAPI:
    """The HTTP interface. Its threads end with its lifespan."""
    readers = ContextPool(READERS, thread_name_prefix="reads")
    orders = Orders(
        publisher=publisher,
        tasks=tasks,
        offer=offer,
        metrics=metrics,
        confirm_timeout_seconds=confirm_timeout_seconds,
        readers=readers,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        readers.shutdown(wait=False, cancel_futures=True)

    # The pages under /docs load their scripts from elsewhere; /openapi.json is enough.
    app = FastAPI(title="darkroom", version=our_version(), lifespan=lifespan, docs_url=None, redoc_url=None)
    _add_handlers(app)
    app.add_api_route(
        "/v1/orders",
        orders.place,
        methods=["POST"],
        status_code=202,
        response_model=Accepted,
        operation_id="placeOrder",
        summary="Place an order",
        responses=documented(
            "malformed_json", "bad_request", "key_reused", "too_large", "invalid_order", "broker_away"
        ),
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": _order_schema()}}}},
    )
    app.add_api_route(
        "/v1/orders/{task_id}",
        orders.status,
        methods=["GET"],
        response_model=OrderStatus,
        operation_id="readOrder",
        summary="What became of an order",
        responses=documented("not_claimed_yet", "invalid_request", "database_away"),
    )
    return app


async def _body(request: Request) -> bytes:
    """The body, of which no more than the limit is ever held. Raises TooLarge."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_ORDER_BYTES:
            raise TooLarge
    return bytes(body)


def _refusal(error: BadOrder) -> Response:
    if isinstance(error, TooLarge):
        return problem("too_large", str(error))
    if not error.is_json:
        return problem("malformed_json", str(error))
    return problem("invalid_order", str(error), mistakes=error.mistakes)


def _accepted(order: Order) -> Response:
    url = f"/v1/orders/{order.task_id}"
    body = Accepted(task_id=order.task_id, idempotency_key=order.idempotency_key, status_url=url)
    return Response(body.model_dump_json(), status_code=202, media_type="application/json", headers={"Location": url})


def _status_of(task: Task, artifacts: list[Artifact]) -> OrderStatus:
    return OrderStatus(
        task_id=task.id,
        status=task.status,
        version=task.version,
        attempt=task.attempt,
        pool=task.pool,
        workflow=task.workflow,
        priority=task.priority,
        order_id=task.order_id,
        idempotency_key=task.idempotency_key,
        reason=task.reason,
        detail=task.detail,
        created_at=task.created_at,
        changed_at=task.changed_at,
        finished_at=task.changed_at if task.status.is_final else None,
        deadline_at=task.deadline_at,
        artifacts=artifacts,
        metadata=dict((task.body or {}).get("metadata", {})),
    )


def _order_schema() -> dict[str, Any]:
    """Order's own schema; the enum it refers to is among the components because OrderStatus has it too."""
    schema = Order.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return schema


def _add_handlers(app: FastAPI) -> None:
    """Whatever goes wrong is answered as a problem, never with a traceback."""

    async def http(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 400
        code = {404: "not_found", 405: "method_not_allowed"}.get(status, "bad_request")
        answer = problem(code, f"{request.method} {request.url.path}")
        answer.headers.update((isinstance(error, HTTPException) and error.headers) or {})  # Allow, for 405
        return answer

    async def invalid(_: Request, error: Exception) -> Response:
        found = error.errors() if isinstance(error, RequestValidationError) else []
        mistakes = [Mistake(str(item["loc"][-1]), str(item["msg"])) for item in found]
        return problem("invalid_request", "; ".join(map(str, mistakes)), mistakes=mistakes)

    async def gone(_: Request, __: Exception) -> Response:
        return problem("bad_request", "the connection ended before the whole body had arrived")

    async def bug(_: Request, __: Exception) -> Response:
        return problem("internal_error", "the log has the details")

    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, bug)
