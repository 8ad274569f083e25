"""The HTTP interface put together: its routes, what they answer, and what the OpenAPI document says of them."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import HTMLResponse

from services.producer import placing, reading, stream
from services.producer.answers import Accepted, Cancellation, OrderPage, OrderStatus, WhatCanBeOrdered
from services.producer.auth import Gate
from services.producer.callbacks import PATH as CALLBACK_PATH
from services.producer.callbacks import Callbacks, Signatures
from services.producer.callbacks import Rows as CallbackRows
from services.producer.database_calls import DatabaseCalls
from services.producer.docs import HEADERS, docs_page
from services.producer.orders import Offer
from services.producer.pictures import Pictures, Store
from services.producer.placing import KEY_PARAMETER, Placing, order_body
from services.producer.problem import add_handlers, documented
from services.producer.publish import Publisher
from services.producer.reading import Reading
from services.producer.stream import MAX_STREAMS, Events, Watch
from services.producer.turnstile import Turnstile
from shared.domain.task import Status
from shared.observe.metrics import our_version

_ABOUT: Final = """Orders in, finished pictures out, each one once. Every answer that is not a success is a problem
(RFC 9457, `application/problem+json`) whose `code` is stable. Where tokens are set, each request but this page's needs
one: `Authorization: Bearer <token>`."""

_BYTES: Final[dict[str, Any]] = {"type": "string", "format": "binary"}
_PICTURE: Final[dict[str, Any]] = {"content": {"image/png": {"schema": _BYTES}, "image/jpeg": {"schema": _BYTES}}}
_SAME: Final[dict[str, Any]] = {"description": "The caller has this picture already"}
_EVENT: Final[dict[str, Any]] = {
    "type": "object",
    "description": "one event; `data` is the JSON of an OrderStatus",
    "required": ["id", "event", "data"],
    "properties": {
        "id": {"type": "string", "description": "the row's version"},
        "event": {"type": "string", "enum": [str(status) for status in Status]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
_EVENTS: Final[dict[str, Any]] = {
    "description": "Events, until the order has ended",
    "content": {
        "text/event-stream": {
            "schema": _EVENT,
            "example": 'retry: 2000\n\nid: 3\nevent: processing\ndata: {"status": "processing", "version": 3}\n\n',
        }
    },
}


class Tasks(placing.Tasks, reading.Tasks, Protocol):
    """The rows, as far as this service needs them."""


class Listing(reading.Listing, stream.Listing, Protocol):
    """Lists of rows."""


def create_app(
    *,
    publisher: Publisher,
    tasks: Tasks,
    listing: Listing,
    store: Store,
    offer: Offer,
    metrics: placing.Counter,
    tokens: Sequence[str] = (),
    read_tokens: Sequence[str] = (),
    confirm_timeout_seconds: float = 5.0,
    max_streams: int = MAX_STREAMS,
    is_stopping: Callable[[], bool] = lambda: False,
    callbacks: tuple[Mapping[str, Signatures], CallbackRows] | None = None,
) -> FastAPI:
    """The HTTP interface. Its threads end with its lifespan.

    callbacks   -- the providers that may call back, by name, and the rows they may call about; None: nobody may
    is_stopping -- once true, open streams end, so that the process can
    """
    calls = DatabaseCalls()
    orders = Placing(
        publisher=publisher,
        tasks=tasks,
        calls=calls,
        offer=offer,
        metrics=metrics,
        confirm_timeout_seconds=confirm_timeout_seconds,
    )
    events = Events(Watch(tasks, listing, calls, is_stopping=is_stopping, max_streams=max_streams))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        calls.close()

    app = FastAPI(
        title="darkroom",
        version=our_version(),
        description=_ABOUT,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(Gate(tokens, read_tokens))],
        responses=documented("unauthorized", "not_from_here", "too_many_requests"),
    )
    app.add_middleware(Turnstile, by_token=bool(tokens))
    add_handlers(app)

    async def docs(_: Request) -> Response:
        return HTMLResponse(docs_page(app.openapi()), headers=HEADERS)

    app.add_route("/docs", docs, include_in_schema=False)
    if callbacks is not None:  # no token: the signature is what lets them in
        taken = Callbacks(*callbacks, calls, metrics)
        app.add_route(CALLBACK_PATH, taken.take, methods=["POST"], include_in_schema=False)
    _add_orders(app, orders, Reading(tasks, listing, calls))
    _add_pictures(app, Pictures(tasks, calls, store))
    app.add_api_route(
        "/v1/orders/{task_id}/events",
        events.stream,
        response_class=Response,
        operation_id="followOrder",
        summary="Follow an order until it has ended",
        responses={
            200: _EVENTS,
            204: {"description": "The order has ended, and the caller has seen that"},
            **documented(
                "not_claimed_yet", "purged", "invalid_request", "database_away", "too_many_streams", "shutting_down"
            ),
        },
    )
    _add_offer(app, offer)
    return app


def _add_orders(app: FastAPI, orders: Placing, known: Reading) -> None:
    app.add_api_route(
        "/v1/orders",
        orders.place,
        methods=["POST"],
        status_code=202,
        response_model=Accepted,
        operation_id="placeOrder",
        summary="Place an order",
        response_description="The broker has the order, or it is known already",
        responses=documented(
            "malformed_json",
            "bad_request",
            "keys_differ",
            "forbidden",
            "too_slow",
            "key_reused",
            "too_large",
            "invalid_order",
            "broker_away",
        ),
        openapi_extra={"requestBody": order_body(), "parameters": [KEY_PARAMETER]},
    )
    app.add_api_route(
        "/v1/orders",
        known.page,
        response_model=OrderPage,
        operation_id="listOrders",
        summary="List orders, the newest first",
        response_description="One page",
        responses=documented("purged", "invalid_request", "database_away"),
    )
    app.add_api_route(
        "/v1/orders/{task_id}",
        known.status,
        response_model=OrderStatus,
        operation_id="readOrder",
        summary="What became of an order",
        response_description="The order as it is",
        responses=documented("not_claimed_yet", "purged", "invalid_request", "database_away"),
    )
    cancellation = {"application/json": {"schema": Cancellation.model_json_schema()}}
    app.add_api_route(
        "/v1/orders/{task_id}/cancel",
        known.cancel,
        methods=["POST"],
        response_model=OrderStatus,
        operation_id="cancelOrder",
        summary="Cancel an order",
        response_description="The cancelled order",
        responses=documented(
            "malformed_json",
            "bad_request",
            "forbidden",
            "not_claimed_yet",
            "purged",
            "too_slow",
            "already_final",
            "too_large",
            "invalid_request",
            "database_away",
        ),
        openapi_extra={"requestBody": {"required": False, "content": cancellation}},
    )


def _add_pictures(app: FastAPI, pictures: Pictures) -> None:
    path = "/v1/orders/{task_id}/artifacts/{index}"
    found = {"description": "The picture", **_PICTURE}
    missing = ("not_claimed_yet", "purged", "no_picture", "invalid_request", "database_away")
    app.add_api_route(
        path,
        pictures.get,
        response_class=Response,
        operation_id="getPicture",
        summary="One finished picture",
        responses={
            200: found,
            206: {"description": "The bytes asked for", **_PICTURE},
            304: _SAME,
            **documented(*missing, "picture_missing", "range_not_satisfiable", "storage_away"),
        },
    )
    app.add_api_route(
        path,
        pictures.head,
        methods=["HEAD"],
        response_class=Response,
        operation_id="headPicture",
        summary="Size, type and hash of one finished picture",
        responses={200: {"description": "The headers of the picture"}, 304: _SAME, **documented(*missing)},
    )


def _add_offer(app: FastAPI, offer: Offer) -> None:
    answer = WhatCanBeOrdered.of(offer)

    async def workflows() -> WhatCanBeOrdered:
        """Every pool, and every workflow with the inputs it takes. It changes with a deploy only."""
        return answer

    app.add_api_route(
        "/v1/workflows",
        workflows,
        operation_id="listWorkflows",
        summary="What can be ordered here",
        response_description="Pools and workflows",
    )
