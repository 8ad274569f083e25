"""Orders in: what can be decided at once is decided here, the rest is the row's."""

import logging
import uuid
from typing import Any, Final, Protocol

from fastapi import Request, Response

from services.producer.answers import Accepted
from services.producer.bodies import body_of, refusal
from services.producer.database_calls import DatabaseCalls
from services.producer.orders import BadOrder, KeysDiffer, Offer, read_order, with_key
from services.producer.problem import Refused
from services.producer.publish import NotConfirmed, Publisher, publish_one
from shared.domain.errors import BrokerAway, DatabaseAway
from shared.domain.messages import Order, order_placed
from shared.domain.task import Task
from shared.observe.logs import bound
from shared.observe.trace import trace_id_from, traceparent_of

log = logging.getLogger(__name__)

#: How long an order waits to be compared with a row of its key. Without an answer it is published all the same.
_COMPARE_SECONDS: Final = 1.0
_KEY_HEADER: Final = "Idempotency-Key"


class Tasks(Protocol):
    """The rows, as far as placing reads them. Every method raises DatabaseAway."""

    def find(self, task_id: uuid.UUID) -> Task | None: ...

    def kept_fingerprint(self, task_id: uuid.UUID) -> str | None: ...


class Counter(Protocol):
    def count(self, name: str, amount: float = 1, /, **labels: str) -> None: ...


class Placing:
    """POST /v1/orders."""

    def __init__(
        self,
        *,
        publisher: Publisher,
        tasks: Tasks,
        calls: DatabaseCalls,
        offer: Offer,
        metrics: Counter,
        confirm_timeout_seconds: float,
    ) -> None:
        self._publisher = publisher
        self._tasks = tasks
        self._calls = calls
        self._offer = offer
        self._metrics = metrics
        self._confirm_timeout = confirm_timeout_seconds

    async def place(self, request: Request) -> Response:
        """Accept one order, or say at once why not.

        `202` means that the broker has the order, or that it has a row already. The idempotency key comes in the body
        or in the header `Idempotency-Key`, taken as it is. The same order may be sent any number of times.
        """
        try:
            order = await self._order_in(request)
        except BadOrder as error:
            self._count("invalid")
            raise refusal(error, "invalid_order") from None
        except KeysDiffer as error:
            self._count("invalid")
            raise Refused("keys_differ", str(error)) from None
        trace_id = trace_id_from(request.headers)
        with bound(trace_id=trace_id, task_id=order.task_id):
            await self._publish(order, trace_id)
        return _accepted(order)

    async def _order_in(self, request: Request) -> Order:
        """Raises BadOrder, KeysDiffer."""
        raw = await body_of(request)
        keys = request.headers.getlist(_KEY_HEADER)
        if len(keys) > 1:
            raise KeysDiffer(f"the header {_KEY_HEADER} came {len(keys)} times")
        order = read_order(with_key(raw, _as_sent(keys[0])) if keys else raw)
        if mistakes := self._offer.mistakes(order):
            raise BadOrder(mistakes)
        return order

    async def _publish(self, order: Order, trace_id: str) -> None:
        """Returns once the broker has it, or when it is known already. Raises Refused."""
        match await self._same_order_is_known(order):
            case False:
                self._count("conflict")
                log.info("idempotency key reused")
                detail = "the first order with this key stays as it is; use a new key for a new order"
                raise Refused("key_reused", detail, task_id=order.task_id)
            case True:
                # The row owns its way from here on, lost permits included; a second message would only be acked.
                self._count("duplicate")
                self._metrics.count("duplicates_suppressed_total", point="publish")
                log.info("order known already")
                return
            case None:
                pass
        try:
            message = order_placed(order, traceparent=traceparent_of(trace_id), received="http")
            await publish_one(self._publisher, message, self._confirm_timeout)
        except BrokerAway as error:
            if isinstance(error, NotConfirmed):
                self._metrics.count("publishes_total", result="timeout")
            log.warning("order not confirmed", extra={"why": str(error)})
            raise Refused(
                "broker_away",
                "the broker did not confirm in time; send the same order again, its key keeps it from counting twice",
            ) from None
        self._count("accepted")
        log.info("order published", extra={"pool": order.pool})

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
            return await self._calls.run(compare, _COMPARE_SECONDS)
        except DatabaseAway as error:
            log.warning("order not compared", extra={"why": str(error)})
            return None

    def _count(self, result: str) -> None:
        self._metrics.count("orders_received_total", source="http", result=result)


def order_body() -> dict[str, Any]:
    """The request body for the OpenAPI document.

    Order's own schema; the enum it refers to is among the components because OrderStatus has it too.
    """
    schema = Order.model_json_schema(ref_template="#/components/schemas/{model}")
    choice = schema.pop("$defs", {}).get("Choice")
    entry = schema["properties"]["pools"]["items"]
    entry["anyOf"] = [choice if "$ref" in one else one for one in entry["anyOf"]]
    schema["required"] = [name for name in schema["required"] if name != "idempotency_key"]
    example = {
        "idempotency_key": "shop-4711-1",
        "order_id": "4711",
        "pool": "comfyui",
        "workflow": "solid-invert",
        "inputs": {"color": 3368601},
        "metadata": {"shop": 7},
    }
    return {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}


#: The parameter for the OpenAPI document. FastAPI's own would lose a key that came twice.
KEY_PARAMETER: Final[dict[str, Any]] = {
    "name": _KEY_HEADER,
    "in": "header",
    "required": False,
    "description": "the order's idempotency_key, where the body names none; both must be equal",
    "schema": {"type": "string", "minLength": 1, "maxLength": 200},
    "example": "shop-4711-1",
}


def _as_sent(header: str) -> str:
    """Starlette reads headers as Latin-1; a key beyond ASCII comes in UTF-8, as it does in the body."""
    return header.encode("latin-1").decode("utf-8", "replace")


def _accepted(order: Order) -> Response:
    url = f"/v1/orders/{order.task_id}"
    body = Accepted(task_id=order.task_id, idempotency_key=order.idempotency_key, status_url=url)
    return Response(body.model_dump_json(), status_code=202, media_type="application/json", headers={"Location": url})
