"""What the HTTP interface answers when it cannot do as asked: RFC 9457, application/problem+json."""

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route

from shared.domain.errors import DarkroomError, DatabaseAway, StorageAway
from shared.domain.mistakes import Mistake

log = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
#: What Retry-After says; an outage that is over sooner is not worth a herd of early callers.
RETRY_AFTER_SECONDS: Final = 5


class Problem(BaseModel):
    """Body of every answer that is not a success."""

    type: str
    title: str
    status: int
    code: str = Field(description="stable; for programs")
    detail: str
    errors: list[dict[str, str]] | None = Field(None, description="one per wrong field: field, message")
    task_id: str | None = None


_LATER: Final = frozenset({HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS})

#: code -> status and title. Codes are part of the interface: add, never rename.
PROBLEMS: Final[dict[str, tuple[HTTPStatus, str]]] = {
    "malformed_json": (HTTPStatus.BAD_REQUEST, "The body is not JSON"),
    "bad_request": (HTTPStatus.BAD_REQUEST, "The request cannot be read"),
    "keys_differ": (HTTPStatus.BAD_REQUEST, "The header names another idempotency key than the body"),
    "unauthorized": (HTTPStatus.UNAUTHORIZED, "A bearer token is needed"),
    "bad_signature": (HTTPStatus.UNAUTHORIZED, "The callback is not signed by the provider"),
    "forbidden": (HTTPStatus.FORBIDDEN, "This token is not good for that"),
    "not_from_here": (HTTPStatus.FORBIDDEN, "Without tokens this machine alone is served"),
    "not_claimed_yet": (HTTPStatus.NOT_FOUND, "No row has this id yet"),
    "not_found": (HTTPStatus.NOT_FOUND, "There is nothing at this address"),
    "no_picture": (HTTPStatus.NOT_FOUND, "The order has no such picture"),
    "picture_missing": (HTTPStatus.NOT_FOUND, "The picture is not in the store"),
    "method_not_allowed": (HTTPStatus.METHOD_NOT_ALLOWED, "This address does not take that method"),
    "purged": (HTTPStatus.GONE, "The order ended long ago and is not kept any more"),
    "too_slow": (HTTPStatus.REQUEST_TIMEOUT, "The body did not arrive in time"),
    "key_reused": (HTTPStatus.CONFLICT, "The idempotency key belongs to an order with another content"),
    "already_final": (HTTPStatus.CONFLICT, "The order has ended and cannot be cancelled"),
    "too_large": (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is too large"),
    "range_not_satisfiable": (HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "The picture has no such bytes"),
    "invalid_order": (HTTPStatus.UNPROCESSABLE_ENTITY, "The order cannot be accepted as it is"),
    "invalid_request": (HTTPStatus.UNPROCESSABLE_ENTITY, "The request cannot be accepted as it is"),
    "too_many_requests": (HTTPStatus.TOO_MANY_REQUESTS, "As many requests of this client are being answered as may be"),
    "internal_error": (HTTPStatus.INTERNAL_SERVER_ERROR, "A mistake of ours"),
    "broker_away": (HTTPStatus.SERVICE_UNAVAILABLE, "The order was not confirmed"),
    "database_away": (HTTPStatus.SERVICE_UNAVAILABLE, "The rows cannot be reached now"),
    "storage_away": (HTTPStatus.SERVICE_UNAVAILABLE, "The picture cannot be read now"),
    "signature_unchecked": (HTTPStatus.SERVICE_UNAVAILABLE, "The provider's keys cannot be had now"),
    "too_many_streams": (HTTPStatus.SERVICE_UNAVAILABLE, "As many streams are open as this process serves"),
    "shutting_down": (HTTPStatus.SERVICE_UNAVAILABLE, "This process is about to end"),
}


class Refused(DarkroomError):
    """The request ends here with the problem `code`, one of PROBLEMS; every 429 and 503 says when to come back."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        mistakes: Sequence[Mistake] = (),
        task_id: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.mistakes = mistakes
        self.task_id = None if task_id is None else str(task_id)
        self.headers = headers or {}

    def answer(self) -> Response:
        status, title = PROBLEMS[self.code]
        body = Problem(
            type=f"urn:darkroom:problem:{self.code}",
            title=title,
            status=status,
            code=self.code,
            detail=str(self),
            errors=[{"field": mistake.field, "message": mistake.message} for mistake in self.mistakes] or None,
            task_id=self.task_id,
        )
        later = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status in _LATER else {}
        text = body.model_dump_json(exclude_none=True)
        return Response(text, status_code=status, media_type=MEDIA_TYPE, headers={**later, **self.headers})


def documented(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The same for FastAPI's `responses`, so the OpenAPI document names every answer, with one example per code."""
    schema = Problem.model_json_schema()
    found: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        status, title = PROBLEMS[code]
        content: dict[str, Any] = {"schema": schema, "examples": {}}
        known = found.setdefault(int(status), {"description": "", "content": {MEDIA_TYPE: content}})
        known["description"] = "; ".join(filter(None, [known["description"], f"`{code}`: {title}"]))
        known["content"][MEDIA_TYPE]["examples"][code] = {"value": _example(code)}
        if status in _LATER:
            known["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
    return found


def _example(code: str) -> dict[str, Any]:
    status, title = PROBLEMS[code]
    of_type = {"type": f"urn:darkroom:problem:{code}", "title": title, "status": int(status), "code": code}
    match code:
        case "invalid_order":
            wrong = {"field": "inputs.width", "message": "must be within 64 and 2048"}
        case "invalid_request":
            wrong = {"field": "task_id", "message": "Input should be a valid UUID"}
        case _:
            return of_type | {"detail": "one sentence about this very request"}
    return of_type | {"detail": f"{wrong['field']}: {wrong['message']}", "errors": [wrong]}


def add_handlers(app: FastAPI) -> None:
    """Whatever goes wrong in `app` is answered as a problem, never with a traceback."""

    async def refused(_: Request, error: Exception) -> Response:
        if not isinstance(error, Refused):
            raise error
        return error.answer()

    async def http(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 400
        detail = f"{request.method} {request.url.path}"
        match status:
            case 404:
                return Refused("not_found", detail).answer()
            case 405:
                return Refused("method_not_allowed", detail, headers={"Allow": _allowed(app, request)}).answer()
        return Refused("bad_request", detail).answer()

    async def invalid(_: Request, error: Exception) -> Response:
        found = error.errors() if isinstance(error, RequestValidationError) else []
        mistakes = [Mistake(".".join(map(str, item["loc"][1:])), str(item["msg"])) for item in found]
        return Refused("invalid_request", "; ".join(map(str, mistakes)), mistakes=mistakes).answer()

    async def gone(_: Request, __: Exception) -> Response:
        return Refused("bad_request", "the connection ended before the whole body had arrived").answer()

    async def database_away(_: Request, error: Exception) -> Response:
        log.warning("the database did not answer a request", extra={"why": str(error)})
        return Refused("database_away", "ask again; the orders go on meanwhile").answer()

    async def storage_away(_: Request, error: Exception) -> Response:
        log.warning("the artifact store did not answer a request", extra={"why": str(error)})
        return Refused("storage_away", "ask again; the picture is kept").answer()

    async def bug(_: Request, __: Exception) -> Response:
        return Refused("internal_error", "the log has the details").answer()

    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(DatabaseAway, database_away)
    app.add_exception_handler(StorageAway, storage_away)
    app.add_exception_handler(Exception, bug)


def _allowed(app: FastAPI, request: Request) -> str:
    """What the address takes; Starlette itself names only the methods of the first route that has it."""
    found = set[str]()
    for route in app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return ", ".join(sorted(found))
